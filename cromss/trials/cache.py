"""Content addresses: an unchanged pretraining is not repeated, a twin in flight is waited for."""

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cromss
from cromss.config import RunConfig
from cromss.ray_session import beside
from cromss.training.warmstart import digests as warm_starts

STALE = 90.0  # seconds without a heartbeat after which a claim counts as left behind by a killed process
SOURCES = ("objective", "networks", "data", "training")  # what the result of a pretraining depends on
ARTEFACTS = ("encoders", "segmenter.safetensors", "panels.npz", "selection.npz", "pretraining.json")


def sources_digest(folders: Sequence[str] = SOURCES) -> str:
    """sha256 over the sources under these folders of the package: by default all that a pretraining runs through."""
    root, digest = Path(cromss.__file__).parent, hashlib.sha256()
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def pretraining_key(config: RunConfig, world: list[str]) -> str:
    """The address of a pretraining: configuration without inert keys, with its seed, and `world`: what else the result
    depends on (digest of the store, digest of the sources, torch version, kind of device)."""
    begun = warm_starts(config)  # another file under the same name is another beginning
    return _hash([config.identity(), world, *([begun] if begun else [])])


def trial_key(config: RunConfig, world: list[str], downstream_digest: str) -> str:
    """The address of a trial: its pretraining and how that is judged."""
    tree = config.model_dump(mode="json")
    judged = {key: tree[key] for key in ("transfer", "probe")}
    if config.pretraining.kind == "checkpoint":  # another file under the same name is another encoder
        judged["files"] = {m: _file_digest(Path(path)) for m, path in config.pretraining.paths.items()}
    return _hash([pretraining_key(config, world), judged, downstream_digest])


def _hash(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _file_digest(path: Path) -> str:
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if not file.exists():
            raise ValueError(f"{file}: no such checkpoint")
        digest.update(file.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def claimed(out: Path, key: str, folder: Path) -> Iterator[Path | None]:
    """Claim the pretraining `key` for the trial in `folder`.

    Yields None when it is ours to do (or to go on with); else the folder of the trial that has finished it. While a
    twin is at it this waits; a claim whose holder was killed is taken over.
    """
    claim = out / "pretrainings" / f"{key}.json"
    claim.parent.mkdir(parents=True, exist_ok=True)
    while True:
        holder = _holder(claim)
        if holder is not None and holder != folder and (holder / "pretraining.json").exists():
            yield holder
            return
        if holder in (None, folder) or time.time() - claim.stat().st_mtime > STALE:
            if holder is not None:
                claim.unlink(missing_ok=True)
            if _take(claim, folder):
                break
        time.sleep(1.0)
    try:
        with beside(partial(_beat, claim)):
            yield None
    finally:
        if not (folder / "pretraining.json").exists():
            claim.unlink(missing_ok=True)


def bring(twin: Path, folder: Path) -> dict[str, Any]:
    """Copy the finished pretraining of another trial into this one's folder; its `pretraining.json`."""
    for name in ARTEFACTS:
        source = twin / name
        if source.is_dir():
            shutil.copytree(source, folder / name, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy2(source, folder / name)
    return json.loads((folder / "pretraining.json").read_text())


def _holder(claim: Path) -> Path | None:
    try:
        return Path(claim.read_text())
    except FileNotFoundError:
        return None


def _take(claim: Path, folder: Path) -> bool:
    aside = claim.with_name(f".{claim.name}-{folder.name}-{os.getpid()}")
    aside.write_text(str(folder))
    try:
        os.link(aside, claim)  # atomic: fails where the name exists
        return True
    except FileExistsError:
        return False
    finally:
        aside.unlink(missing_ok=True)


def _beat(claim: Path, stop: threading.Event) -> None:
    while not stop.wait(10.0):
        with contextlib.suppress(OSError):
            os.utime(claim)
