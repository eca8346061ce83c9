"""Synthetic Earths as two stores: somewhere to pretrain, somewhere else to be judged.

A sweep has one Earth for all its trials (`synthetic_stores`), or its samples name their own under the key `world`: an
overlay of `SyntheticEarth`. A store of such a world is made once, when the first trial needs it, and shared:

    OUT/synthetic/<digest of what it depends on>/{pretraining,downstream}
"""

import contextlib
import errno
import fcntl
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from cromss.config import RunConfig
from cromss.data.chunks import Ingest
from cromss.data.store import PatchStore
from cromss.data.synthetic import Clean, SyntheticEarth
from cromss.ingest import ingest
from cromss.settings import leaves, overlay, validate
from cromss.trials.cache import sources_digest

GENERATOR = ("data/synthetic",)
TRIAL = "trial"  # as a world's seed: the trial's own, so that every seed is an independent world


def synthetic_stores(folder: Path, earth: SyntheticEarth | None = None) -> tuple[Path, Path]:
    """(pretraining store, downstream store) under `folder`, made unless they are there already."""
    earth = earth or SyntheticEarth()
    data, downstream = folder / "pretraining", folder / "downstream"
    for path, source in ((data, earth), (downstream, earth.model_copy(update={"downstream": True}))):
        _make(source, path)
    return data, downstream


@dataclass(frozen=True)
class Ground:
    """One store of a world: its source, without what the store does not depend on, and where it lies. `digest` stands for
    the store's own before there is a store."""

    source: SyntheticEarth
    path: Path
    digest: str

    def make(self) -> Path:
        """The store's path, once it is there. One process makes it, the others wait; a killed maker's work goes on."""
        _make(self.source, self.path)
        return self.path


@dataclass(frozen=True)
class World:
    """An Earth and its two stores under `folder`; `generator` is the digest of the sources that make its pixels."""

    earth: SyntheticEarth
    folder: Path
    generator: str

    @property
    def pretraining(self) -> Ground:
        unused = {name: SyntheticEarth.model_fields[name].default for name in ("train", "test")}
        return self._ground("pretraining", unused)

    @property
    def downstream(self) -> Ground:
        """It has no noise, and its places are its own: worlds that differ in these share it."""
        return self._ground("downstream", {"downstream": True, "noise": Clean(), "places": 1})

    def make(self) -> tuple[Path, Path]:
        """(pretraining store, downstream store), made unless they are there."""
        return self.pretraining.make(), self.downstream.make()

    def check(self, config: RunConfig) -> None:
        """What can be known before the stores are there. Raises ValueError."""
        trained = config.model.fusion.modalities if config.pretraining.trains else ()
        for modality in dict.fromkeys((*trained, *config.judged_modalities)):
            if modality not in self.earth.modalities:
                raise ValueError(f"modality {modality!r}: this world has {', '.join(self.earth.modalities)}")
        folds = min(Ingest().folds, self.earth.places)
        rows = self.earth.places - ceil(self.earth.places / folds) * config.data.val_folds
        if trained and rows < config.optim.batch_size:
            raise ValueError(
                f"world.places={self.earth.places}: an epoch has {max(rows, 0)} patches, fewer than "
                f"optim.batch_size={config.optim.batch_size}; give the world more places"
            )

    def _ground(self, name: str, inert: dict[str, Any]) -> Ground:
        source = self.earth.model_copy(update=inert)
        told = json.dumps([source.model_dump(mode="json"), self.generator], sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()[:16]
        return Ground(source, self.folder / digest / name, digest)


@dataclass(frozen=True)
class Worlds:
    """What the worlds of a sweep have in common: `base`, an overlay below that of each sample, and where they lie."""

    base: dict[str, Any]
    folder: Path
    generator: str

    def of(self, sample: dict[str, Any], seed: int) -> World:
        """The world of a sample, for a trial of this seed. Raises ValueError naming what is wrong with it."""
        given = overlay(self.base, sample.get("world", {}))
        if "downstream" in given:
            raise ValueError("world.downstream: a world is both; leave it out")
        own = {"seed": seed} if given.get("seed") == TRIAL else {}
        try:
            return World(validate(SyntheticEarth, given | own), self.folder, self.generator)
        except ValueError as error:
            raise ValueError("\n".join(f"world.{line}" for line in str(error).splitlines())) from None

    def told(self, sample: dict[str, Any], seed: int) -> dict[str, Any]:
        """The world of a sample as its record has it: the merged overlay, its seed a number."""
        return overlay(self.base, sample.get("world", {})) | {"seed": self.of(sample, seed).earth.seed}

    def parameters(self, sample: dict[str, Any]) -> dict[str, Any]:
        """What a sample says about its world, as dotted keys; a seed that follows the trial's is none."""
        said = leaves({"world": sample.get("world", {})})
        return {key: value for key, value in said.items() if (key, value) != ("world.seed", TRIAL)}


def bytes_of(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def generator_digest() -> str:
    """sha256 of the sources that make the pixels: another generator is another world."""
    return sources_digest(GENERATOR)


def no_doubles(configs: list[RunConfig]) -> list[RunConfig]:
    """For an estimate, which counts equal configurations once: in another world no trial is another's double."""
    return [config.model_copy(update={"seed": number}) for number, config in enumerate(configs)]


def _make(source: SyntheticEarth, path: Path) -> None:
    with _alone(path):
        if (path / "manifest.json").exists():
            PatchStore.open(path)
        else:
            ingest(source, path)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; the kernel releases the lock of a killed one. Where there are no locks two may write the same
    bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
        yield
