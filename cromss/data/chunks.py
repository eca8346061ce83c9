"""In which order the locations of a source are written, and which of them make a shard."""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pydantic

from cromss.data.sources.base import Location, Source, require_text
from cromss.data.tiling import Axis, Split
from cromss.sensors import SENTINEL2
from cromss.settings import Settings


class Ingest(Settings):
    """How a source becomes a store."""

    bands: str = pydantic.Field("all", description="Sentinel-2 bands of the store: all, 12, 9, 3, or names B4,B3,B2")
    tile: int | None = pydantic.Field(None, ge=8, description="cut square patches of that many pixels; default whole")
    split: Split = pydantic.Field(
        "source",
        description="source: as the layout says; none: all train; halves: west train, east test; halves-swapped",
    )
    axis: Axis = pydantic.Field("west-east", description="direction of the halves")
    guard: int = pydantic.Field(64, ge=0, description="pixels left out between the halves")
    encoding: Literal["auto", "uint8", "raw"] = pydantic.Field(
        "auto", description="uint8 for pretraining, raw for downstream sets; auto: as is usual for the layout"
    )
    folds: int = pydantic.Field(100, ge=1, description="parts by location, for validation on whole folds")
    cell: float | None = pydantic.Field(
        None, gt=0, le=90, description="folds of whole cells of so many degrees, so that no neighbour of a training "
        "location validates; default: by location"
    )  # fmt: skip
    seed: int = pydantic.Field(0, ge=0, description="of the order of locations")
    include: tuple[str, ...] = pydantic.Field((), description="only locations like this pattern, * allowed; repeatable")
    exclude: tuple[str, ...] = pydantic.Field((), description="no locations like this pattern; repeatable")
    chunk: int = pydantic.Field(64, ge=16, description="locations of a shard, and of a task")

    @pydantic.field_validator("bands")
    @classmethod
    def _known_bands(cls, value: str) -> str:
        SENTINEL2.select(value)
        return value


@dataclass(frozen=True)
class Chunk:
    """Some locations with their folds, in order; together they are one shard."""

    number: int
    places: tuple[tuple[Location, int], ...]

    @property
    def file(self) -> str:
        """Name of what its task leaves in the journal."""
        return f"{self.number:05d}.json"


def plan_chunks(source: Source, config: Ingest) -> list[Chunk]:
    """The source's locations, permuted, fold by fold, in chunks. Raises ValueError when none are left, or the name of one
    is no text."""
    order = _order(source, _chosen(source.locations(), config), config)
    starts = range(0, len(order), config.chunk)
    return [Chunk(number, tuple(order[first : first + config.chunk])) for number, first in enumerate(starts)]


def _chosen(locations: list[Location], config: Ingest) -> list[Location]:
    def wanted(name: str) -> bool:
        def like(patterns: Iterable[str]) -> bool:
            return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

        return (not config.include or like(config.include)) and not like(config.exclude)

    kept = [location for location in locations if wanted(location.id)]
    if not kept:
        raise ValueError(
            f"--include {' '.join(config.include) or '*'} --exclude {' '.join(config.exclude) or '(none)'}: "
            f"leaves none of {len(locations)} locations, for example {locations[0].id}"
        )
    for location in kept:
        require_text(location.id)
    return kept


def _order(source: Source, locations: list[Location], config: Ingest) -> list[tuple[Location, int]]:
    """Permuted, split by split, with the fold of each: folds are contiguous, so one fold at a time waits in memory."""
    rng = np.random.default_rng(config.seed)
    permuted = [locations[index] for index in rng.permutation(len(locations))]
    by_split: dict[str, list[Location]] = {}
    for location in permuted:
        by_split.setdefault(location.split, []).append(location)
    order = []
    for _, group in sorted(by_split.items()):
        if config.cell is None:
            numbered = [
                (location, number * min(config.folds, len(group)) // len(group))
                for number, location in enumerate(group)
            ]
        else:
            numbered = _by_cell(source, group, config)
        order += numbered
    return order


def _by_cell(source: Source, group: list[Location], config: Ingest) -> list[tuple[Location, int]]:
    """Whole cells of the globe, in the order in which the permutation meets them, dealt to folds of about equal size."""
    cells: dict[tuple[int, int], list[Location]] = {}
    for location in group:
        cells.setdefault(_cell(source, location, config.cell), []).append(location)
    folds, before, order = min(config.folds, len(cells)), 0, []
    for number, members in enumerate(cells.values()):
        # by the share of locations that came before, but never so far behind that the last folds stay empty
        fold = max(before * folds // len(group), number + folds - len(cells))
        order += [(location, fold) for location in members]
        before += len(members)
    return order


def _cell(source: Source, location: Location, degrees: float) -> tuple[int, int]:
    try:
        found = source.survey(location)
    except (ValueError, OSError):  # it will be skipped, and named, when it is read
        return (0, 0)
    if not np.isfinite([found.lon, found.lat]).all():
        raise ValueError(f"--cell {degrees:g}: {location.id} does not say where it lies; leave --cell out")
    return int(np.floor(found.lon / degrees)), int(np.floor(found.lat / degrees))
