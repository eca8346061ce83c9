"""Search spaces: Python files in `tune_spaces/`, one question each.

\"\"\"The question, the command, the cost; later the answer.\"\"\"
BASE = {...}        optional: what all its trials share
SEARCH = "optuna"   optional: a guided search instead of grid and random sampling
SAMPLES = 8         optional: samples of a space with random samplers
def space() -> dict: an overlay of the configuration, nested plain dicts with Tune samplers at the leaves;
                     the key `arm` names a row of the paper's table
"""

import importlib
import importlib.util
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cromss.settings import suggest


@dataclass(frozen=True)
class Space:
    """A loaded space."""

    name: str
    question: str
    base: dict[str, Any]
    params: dict[str, Any]
    search: str
    samples: int


def load(which: str) -> Space:
    """The space named `which` in tune_spaces/, or in the file `which`. Raises ValueError listing the known ones."""
    module = _module(which)
    if not callable(getattr(module, "space", None)):
        raise ValueError(f"space {which}: defines no function space()")
    search = getattr(module, "SEARCH", "")
    if search not in ("", "optuna"):
        raise ValueError(f"space {which}: SEARCH={search!r}; valid: optuna, or none for grid and random sampling")
    question = " ".join((module.__doc__ or which).strip().split("\n\n")[0].split())
    return Space(
        name=Path(which).stem,
        question=question,
        base=getattr(module, "BASE", {}),
        params=module.space(),
        search=search,
        samples=getattr(module, "SAMPLES", 1),
    )


def names() -> list[str]:
    """The spaces that are shipped."""
    import tune_spaces

    return sorted(info.name for info in pkgutil.iter_modules(tune_spaces.__path__))


def _module(which: str) -> ModuleType:
    path = Path(which)
    if path.suffix == ".py" and path.exists():
        spec = importlib.util.spec_from_file_location(f"space_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if path.stem not in names():
        raise ValueError(f"space {which!r}: no such file, and unknown{suggest(path.stem, names())}")
    return importlib.import_module(f"tune_spaces.{path.stem}")


def variants(params: dict[str, Any], samples: int, seed: int = 0) -> list[dict[str, Any]]:
    """What grid and random sampling draw from a space: every grid point, `samples` times. Seeded."""
    import numpy as np
    from ray.tune.search.variant_generator import generate_variants

    random = np.random.default_rng(seed)
    return [sample for _ in range(samples) for _, sample in generate_variants(params, random_state=random)]


def is_random(params: dict[str, Any]) -> bool:
    """Whether a space holds samplers beside grids, so that more samples mean more trials."""
    from ray.tune.search.sample import Domain

    return any(
        is_random(value) if isinstance(value, dict) and "grid_search" not in value else isinstance(value, Domain)
        for value in params.values()
    )


def grid(*values: Any) -> dict[str, list[Any]]:
    """Every one of these values, as Tune writes it; spaces stay importable without Ray."""
    return {"grid_search": list(values)}
