"""Search spaces: Python files in `tune_spaces/`, one question each.

\"\"\"The question, the command, the cost; later the answer.\"\"\"
BASE = {...}        optional: what all its trials share
SEARCH = "optuna"   optional: a guided search instead of grid and random sampling
WORLD = {...}       optional: its trials stand on synthetic Earths of their own; what these share, an overlay of SyntheticEarth
SAMPLES = 8         optional: samples of a space with random samplers
ANSWER = Compare("CromSS-midF", "midF")   optional: how the results answer the question (cromss/trials/answers.py)
def space() -> dict: an overlay of the configuration, nested plain dicts with Tune samplers at the leaves;
                     the key `arm` names a row of the paper's table,
                     the key `world` says what its synthetic Earth has beside WORLD. A world's `seed` may be "trial", the
                     trial's own, so that every seed is an independent world
          or a list: a design, every sample as it is; one that names its `seed`, counted from the run's, runs with no other
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
    params: dict[str, Any] | list[dict[str, Any]]
    search: str
    samples: int
    answer: Any = None  # of cromss/trials/answers.py
    world: dict[str, Any] | None = None  # what all its worlds share

    @property
    def has_worlds(self) -> bool:
        """Whether its trials stand on synthetic Earths of their own. Raises ValueError where only some do."""
        if self.world is not None:
            return True
        named = {"world" in sample for sample in ([self.params] if isinstance(self.params, dict) else self.params)}
        if len(named) > 1:
            raise ValueError(
                f"space {self.name}: some of its samples name a `world`, others do not; name it in all, or in none"
            )
        return named == {True}


def load(which: str) -> Space:
    """The space named `which` in tune_spaces/, or in the file `which`. Raises ValueError listing the known ones."""
    module = _module(which)
    if not callable(getattr(module, "space", None)):
        raise ValueError(f"space {which}: defines no function space()")
    search = getattr(module, "SEARCH", "")
    if search not in ("", "optuna"):
        raise ValueError(f"space {which}: SEARCH={search!r}; valid: optuna, or none for grid and random sampling")
    params = module.space()
    if search and not isinstance(params, dict):
        raise ValueError(f"space {which}: SEARCH={search!r} needs a space to search, and space() is a list of samples")
    question = " ".join((module.__doc__ or which).strip().split("\n\n")[0].split())
    return Space(
        name=Path(which).stem,
        question=question,
        base=getattr(module, "BASE", {}),
        params=params,
        search=search,
        samples=getattr(module, "SAMPLES", 1),
        answer=getattr(module, "ANSWER", None),
        world=getattr(module, "WORLD", None),
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


def variants(params: dict[str, Any] | list[dict[str, Any]], samples: int, seed: int = 0) -> list[dict[str, Any]]:
    """What grid and random sampling draw from a space: every grid point, `samples` times. Seeded. A design is what it is."""
    if isinstance(params, list):
        return params
    import numpy as np
    from ray.tune.search.variant_generator import generate_variants

    random = np.random.default_rng(seed)
    return [sample for _ in range(samples) for _, sample in generate_variants(params, random_state=random)]


def drawn(space: Space, samples: int, first: int, seeds: int) -> list[dict[str, Any]]:
    """Every sample with each of `seeds` seeds from `first` on. One of a design that names its own seed, which is counted from
    `first`, runs with that one. Of a guided search, one sample stands for all."""
    found = []
    for repeat in range(seeds):
        for sample in variants(space.params, 1 if space.search else samples, seed=first):
            own = sample.get("seed") if isinstance(space.params, list) else None
            if own is None or repeat == 0:
                found.append(sample | {"seed": first + (repeat if own is None else own)})
    return found


def checked_samples(space: Space, samples: int | None) -> int:
    """How many samples are drawn: as asked for, else as the space says. Raises ValueError for several of a plain grid."""
    samples = samples or space.samples
    if samples > 1 and not is_random(space.params):
        raise ValueError(f"--samples {samples}: space {space.name} is a plain grid, every point runs once anyway")
    return samples


def is_random(params: dict[str, Any] | list[dict[str, Any]]) -> bool:
    """Whether a space holds samplers beside grids, so that more samples mean more trials."""
    if isinstance(params, list):
        return False
    from ray.tune.search.sample import Domain

    return any(
        is_random(value) if isinstance(value, dict) and "grid_search" not in value else isinstance(value, Domain)
        for value in params.values()
    )


def grid(*values: Any) -> dict[str, list[Any]]:
    """Every one of these values, as Tune writes it; spaces stay importable without Ray."""
    return {"grid_search": list(values)}
