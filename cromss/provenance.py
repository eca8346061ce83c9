"""Where a number comes from: what a run writes down so that anybody can get it again, and the commands that do.

collect(...)      versions, git revision, stores, kind of device: `provenance` of every trial.json
commands(...)     what to type to repeat one trial, pretraining or judgement
"""

import functools
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cromss.settings import leaves

# What a score may depend on, by the names that pip knows; one that is not installed is left out.
PACKAGES = (
    "torch",
    "torchvision",
    "ray",
    "segmentation-models-pytorch",
    "timm",
    "lightly",
    "numpy",
    "rasterio",
    "mlflow",
)
REVISION = "CROMSS_REVISION"  # the git revision of an image or archive that was built without its .git


def collect(
    *, seed: int, device: str = "", data: str = "", downstream: str = "", store_digest: str = "",
    downstream_digest: str = "",
) -> dict[str, Any]:  # fmt: skip
    """The circumstances of a run on this machine, beside its configuration and command; empty entries are left out.

    device              cpu | cuda
    data, downstream    where the stores lie; the digests say what is in them
    """
    found = {
        "packages": dict(_versions()),
        "git": dict(_git()),
        "python": platform.python_version(),
        "host": device,
        "seed": seed,
        "data": data,
        "downstream": downstream,
        "store_digest": store_digest,
        "downstream_digest": downstream_digest,
    }
    return {key: value for key, value in found.items() if value not in ("", {})}


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = []
    for name in ("cromss", *PACKAGES):
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


@functools.cache
def _git() -> tuple[tuple[str, Any], ...]:
    """(revision, dirty) of the checkout that these sources lie in, from `CROMSS_REVISION` where there is none, else nothing:
    an installed package lies in no checkout, even inside a virtual environment that does."""
    here = Path(__file__)

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here.parent), *words], capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # ours, not a folder that the checkout ignores
        changed = git("status", "--porcelain", "--untracked-files=no")
        return ("revision", git("rev-parse", "HEAD")), ("dirty", bool(changed))
    except (OSError, subprocess.SubprocessError):
        told = os.environ.get(REVISION, "")
        return (("revision", told.removesuffix("-dirty")), ("dirty", told.endswith("-dirty"))) if told else ()


def revision(provenance: Mapping[str, Any]) -> str:
    """`9e73800c41f2`, with `-dirty` where the checkout held changes; nothing where the sources were in no checkout."""
    git = provenance.get("git") or {}
    return f"{git['revision'][:12]}{'-dirty' if git.get('dirty') else ''}" if git.get("revision") else ""


_TAGS = {
    "cromss.python": "python", "cromss.device": "host", "cromss.data": "data", "cromss.store": "store_digest",
    "cromss.downstream": "downstream", "cromss.downstream_store": "downstream_digest",
}  # fmt: skip


def tags(provenance: Mapping[str, Any]) -> dict[str, str]:
    """The short form, for MLflow's tags."""
    packages = provenance.get("packages") or {}
    return {
        "cromss.git": revision(provenance),
        "cromss.versions": ", ".join(f"{name} {version}" for name, version in packages.items()),
    } | {tag: str(provenance.get(key, "")) for tag, key in _TAGS.items()}


def from_tags(tags: Mapping[str, str]) -> dict[str, Any]:
    """The provenance that `tags` are the short form of."""
    found: dict[str, Any] = {key: tags[tag] for tag, key in _TAGS.items() if tags.get(tag)}
    if said := tags.get("cromss.versions"):
        found["packages"] = dict(one.rsplit(" ", 1) for one in said.split(", "))
    if said := tags.get("cromss.git"):
        found["git"] = {"revision": said.removesuffix("-dirty"), "dirty": said.endswith("-dirty")}
    return found


def changed(provenance: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """package -> (version then, version here) where the two differ; `none` for one that is not installed."""
    here, then = dict(_versions()), provenance.get("packages") or {}
    return {name: (version, here.get(name, "none")) for name, version in then.items() if here.get(name) != version}


# --- again --------------------------------------------------------------------------------------------------------------


def commands(trial: Mapping[str, Any], config: Path, out: Path) -> list[str]:
    """What repeats `trial` (its trial.json), with its resolved configuration in the file `config`, into the folder `out`.

    A trial of a sweep is repeated alone, by the verbs that the sweep calls: a pretraining, then its judgement. The store
    paths are those of the run; their digests are in `provenance`.
    """
    kind = _kind(trial)
    data, downstream = stores(trial)
    shared = ["--config", str(config)]
    lines = _worlds(trial)
    if kind != "transfer" and _pretrained(trial):
        probe = ["--downstream", downstream] if downstream else []
        lines.append(
            _command("pretrain", "--data", data or "STORE", *probe, *shared, "--out", str(out / "pretraining"))
        )
    if kind != "pretrain":
        encoders = [word for one in _encoders(trial, out) for word in ("--encoder", one)]
        lines.append(
            _command(
                "transfer", *encoders, "--downstream", downstream or "STORE", *shared, "--out", str(out / "transfer")
            )
        )
    return lines


def remarks(trial: Mapping[str, Any]) -> list[str]:
    """Comment lines: what else has to be as it was: the sources, the packages, the stores."""
    provenance = trial.get("provenance") or {}
    lines = [f"{trial.get('arm', '')}, seed {trial.get('seed', '?')}: {trial.get('key', '')}"]
    if trial.get("command"):
        lines.append(f"it was part of: {trial['command']}")
    if not provenance:
        lines.append("it recorded no versions, stores or git revision")
    if found := revision(provenance):
        lines.append(f"git checkout {found.removesuffix('-dirty')}")
    if found.endswith("-dirty"):
        lines.append("that checkout held changes which no commit has: the numbers may differ")
    if differing := changed(provenance):
        said = ", ".join(f"{name} {then} (here {here})" for name, (then, here) in differing.items())
        lines.append(f"other versions than here: {said}")
        if pins := [f"{name}=={then}" for name, (then, _) in differing.items() if name != "cromss"]:
            lines.append(f"pip install {shlex.join(pins)}")
    for name, place in zip(("store", "downstream"), stores(trial), strict=True):
        if place:
            lines.append(f"{place}: digest {provenance.get(f'{name}_digest') or 'not recorded'}{_gone(place)}")
    return [f"# {' '.join(line.split())}" for line in lines]


def _gone(place: str) -> str:
    return "" if "://" in place or Path(place).exists() else "; IT IS NOT HERE ANY MORE"


def _worlds(trial: Mapping[str, Any]) -> list[str]:
    """What makes the stores of a trial's own synthetic Earth again, where they are gone."""
    world = trial.get("world") or {}
    lines = []
    for place, kind in zip(stores(trial), ("--no-downstream", "--downstream"), strict=True):
        if world and place and not Path(place).exists():
            sets = [word for key, value in leaves(world).items() for word in ("--set", f"{key}={json.dumps(value)}")]
            lines.append(_command("ingest", "synthetic", place, kind, *sets))
    return lines


def repeated(trial: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that repeats a trial: as it was resolved, with the number of workers that it then had."""
    config = dict(trial["config"])
    workers = (trial.get("pretraining") or {}).get("workers")
    if workers and config.get("scaling", {}).get("num_workers") is None:
        config["scaling"] = config["scaling"] | {"num_workers": workers}
    return config


def stores(trial: Mapping[str, Any]) -> tuple[str, str]:
    """Where the pretraining and the downstream store of a run lay, as far as it said so."""
    provenance = trial.get("provenance") or {}
    return provenance.get("data") or trial.get("data") or "", provenance.get("downstream") or ""


def _kind(trial: Mapping[str, Any]) -> str:
    """pretrain | transfer | trial: a single run has its verb for a key."""
    return trial["key"] if trial.get("key") in ("pretrain", "transfer") else "trial"


def _pretrained(trial: Mapping[str, Any]) -> bool:
    return trial["config"].get("pretraining", {}).get("kind", "pretrain") not in ("random", "checkpoint")


def _encoders(trial: Mapping[str, Any], out: Path) -> list[str]:
    pretraining = trial["config"].get("pretraining", {})
    if pretraining.get("kind") == "random":
        return ["random"]
    if pretraining.get("kind") == "checkpoint":
        return [f"{modality}={path}" for modality, path in pretraining["paths"].items()]
    return [str(out / "pretraining")]


def _command(verb: str, *words: str) -> str:
    return f"python -m cromss.{verb} {shlex.join(words)}"
