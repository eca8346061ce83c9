"""Has a network seen in pretraining what it will be judged on? By ground, and by the pixels themselves.

Ground: for every test tile the pretraining tile that overlaps it or comes nearest (`footprints.nearest`).
Pixels: for every acquisition of a test tile the training patch that is the same picture (`likeness`).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cromss.data.footprints import footprints, nearest
from cromss.data.likeness import CODES, SAME, TURNS, Index, Lens, Pair, acquisitions, blocks_of, compared
from cromss.data.store import PatchStore
from cromss.sensors import sensor

_LOOKALIKES = 12  # most similar pairs that are none, kept to be looked at
_SHOWN = 8  # examples in the text


@dataclass(frozen=True)
class Nearby:
    """A test tile, the pretraining tile that overlaps it or comes nearest, and the ground between them in metres, 0 where
    they only touch; `shared` = they overlap."""

    tile: str
    other: str
    metres: float
    shared: bool


@dataclass(frozen=True)
class Leakage:
    """What was found. `near` and `duplicates` begin with the worst; a test tile is a place, with all its acquisitions."""

    pretraining: str
    downstream: str
    splits: tuple[str, ...]
    buffer: float
    tiles: int  # test tiles
    unplaced: int  # of them without georeference
    pretraining_tiles: int
    pretraining_unplaced: int
    near: tuple[Nearby, ...]  # of each test tile that has one within the buffer
    modality: str  # compared
    bands: tuple[str, ...]
    side: int  # pixels of the compared middle of every patch
    sizes: tuple[tuple[int, int], tuple[int, int]]  # of a pretraining and of a test patch
    patches: int  # test patches compared
    pretraining_patches: int
    flat: int  # test patches without contrast, which cannot be told apart
    duplicates: tuple[Pair, ...]  # the best of each test patch
    lookalikes: tuple[Pair, ...]  # the most similar pairs that are none
    duplicate_tiles: int  # test tiles with a near-duplicate

    @property
    def shared(self) -> tuple[Nearby, ...]:
        """Test tiles whose ground a pretraining tile covers, wholly or in part."""
        return tuple(one for one in self.near if one.shared)

    @property
    def within(self) -> tuple[Nearby, ...]:
        """Test tiles that share no ground, but have a pretraining tile within the buffer."""
        return tuple(one for one in self.near if not one.shared)

    def to_json(self) -> str:
        """Everything, as JSON; pairs by id."""
        named = asdict(self) | {
            "shared": len(self.shared),
            "within": len(self.within),
            "limits": {"correlation": SAME, "difference": CODES},
            "duplicates": [_named(pair) for pair in self.duplicates],
            "lookalikes": [_named(pair) for pair in self.lookalikes],
        }
        return json.dumps(named, indent=2)

    def __str__(self) -> str:
        placed, others = self.tiles - self.unplaced, self.pretraining_tiles - self.pretraining_unplaced
        lines = [
            ("test tiles", f"{self.tiles:,} of {self.downstream} ({', '.join(self.splits)})"),
            ("pretraining", f"{self.pretraining_tiles:,} tiles of {self.pretraining} (train)"),
        ]
        for count, whose in ((self.unplaced, "test"), (self.pretraining_unplaced, "pretraining")):
            if count:
                lines.append(("", f"{count:,} {whose} tiles do not say where they lie: their ground is not compared"))
        if placed and others:
            lines.append(("shared ground", f"{len(self.shared):,} of {placed:,} test tiles"))
            lines += self._examples(f"{one.tile} lies on {one.other}" for one in self.shared)
            lines.append((f"within {self.buffer:,.0f} m", f"{len(self.within):,} more"))
            lines += self._examples(f"{one.tile} lies {one.metres:,.0f} m from {one.other}" for one in self.within)
        else:
            lines.append(("shared ground", "unknown"))
        lines.append(("near-duplicates", f"{self.duplicate_tiles:,} of {self.tiles:,} test tiles"))
        lines += self._examples(map(str, self.duplicates))
        compared = (
            f"{self.patches:,} test patches with {self.pretraining_patches:,}: {sensor(self.modality).title} "
            f"{' '.join(self.bands)}, {self.side} x {self.side} pixels"
        )
        if any(size != (self.side, self.side) for size in self.sizes):
            pre, test = (f"{height} x {width}" for height, width in self.sizes)
            compared += f", the middle of each (pretraining {pre}, test {test})"
        lines.append(("compared", compared))
        if self.flat:
            lines.append(("", f"{self.flat:,} test patches are of one shade, like many others: not compared"))
        lines.append(
            ("", "found: copies in either encoding, flipped, turned, moved by whole pixels (all up to 5 % of the")
        )
        lines.append(("", "  side, half at 12 %), and, where there is contrast, noisy or through JPEG"))
        lines.append(("", "not found: copies resampled, scaled, of another processing level, or that overlap in part"))
        return "\n".join(f"{key:<16} {value}" for key, value in lines)

    @staticmethod
    def _examples(texts: Iterable[str]) -> list[tuple[str, str]]:
        texts = list(texts)
        more = [("", f"  and {len(texts) - _SHOWN:,} more")] if len(texts) > _SHOWN else []
        return [("", f"  {text}") for text in texts[:_SHOWN]] + more


def leakage(
    pretraining: PatchStore,
    downstream: PatchStore,
    *,
    buffer: float = 1000.0,
    splits: Sequence[str] = ("test",),
    progress: Callable[[str], None] | None = None,
) -> Leakage:
    """Compare the training split of `pretraining` with some splits of `downstream`, every acquisition.

    buffer    metres of ground between tiles that count as near
    splits    of the downstream store: those that are judged
    progress  receives a line now and then

    Memory grows with the test patches alone (some 10 kB each). Raises ValueError when a split is missing, when the stores
    have no band in common, or for a buffer beyond `footprints.MOST`.
    """
    splits = tuple(splits)
    for store, wanted in ((pretraining, ("train",)), (downstream, splits)):
        if missing := sorted(set(wanted) - set(store.splits)):
            raise ValueError(f"{store.path}: has no split {', '.join(missing)}; valid: {', '.join(store.splits)}")
    say = progress or (lambda line: None)
    tiles, others = footprints(downstream, splits), footprints(pretraining, ("train",))
    found = nearest(tiles, others, buffer)
    near = [
        Nearby(tiles.ids[i], others.ids[found.other[i]], max(float(found.clearance[i]), 0.0), bool(found.shared[i]))
        for i in np.flatnonzero(found.other >= 0)
    ]
    say(f"{len(tiles):,} test tiles beside {len(others):,} pretraining tiles: {len(near):,} within {buffer:,.0f} m")
    lens = Lens.of(pretraining, downstream)
    index = Index.of(lens, downstream, splits, say)
    pairs = compared(lens, index.candidates(lens, pretraining, say), pretraining, downstream, say)
    duplicates = _best(pair for pair in pairs if pair.duplicate)
    named = {pair.test.id for pair in duplicates}
    alike = _best(pair for pair in pairs if not pair.duplicate and pair.test.id not in named)
    return Leakage(
        pretraining=str(pretraining.path), downstream=str(downstream.path), splits=splits, buffer=float(buffer),
        tiles=len(tiles) + tiles.unplaced, unplaced=tiles.unplaced,
        pretraining_tiles=len(others) + others.unplaced, pretraining_unplaced=others.unplaced,
        near=tuple(sorted(near, key=lambda one: (not one.shared, one.metres, one.tile))),
        modality=lens.modality, bands=lens.bands, side=lens.side, sizes=(pretraining.size, downstream.size),
        patches=index.patches, pretraining_patches=acquisitions(blocks_of(pretraining, ("train",))),
        flat=index.flat, duplicates=tuple(duplicates), lookalikes=tuple(alike[:_LOOKALIKES]),
        duplicate_tiles=len({index.places[pair.test.id] for pair in duplicates}),
    )  # fmt: skip


def _best(pairs: Iterable[Pair]) -> list[Pair]:
    """The best of each test patch, the worst of them all first."""
    found: dict[str, Pair] = {}
    for pair in sorted(pairs, key=lambda pair: (-pair.correlation, pair.difference, pair.test.id, pair.other.id)):
        found.setdefault(pair.test.id, pair)
    return list(found.values())


def _named(pair: Pair) -> dict[str, Any]:
    return {
        "test": pair.test.id,
        "other": pair.other.id,
        "turn": TURNS[pair.turn],
        "shift": list(pair.shift),
        "correlation": round(pair.correlation, 5),
        "difference": round(pair.difference, 3),
    }
