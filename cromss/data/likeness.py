"""Is a patch the same picture as another one, whatever its georeference, encoding and orientation?

Every acquisition becomes the 8-bit codes of the Sentinel-2 bands that both stores hold (Sentinel-1's where there are
none), and then the means of 8 x 8 cells. The test patches, in all 8 flips and turns, are laid into a search tree along
their principal axes: an orthogonal projection never takes two patches farther apart, so it loses no pair nearer than the
radius. Every pretraining patch is read once and looked up; of those whose cells correlate, the nearest few of every test
patch are then compared pixel by pixel, also shifted by up to an eighth of their side.

What was measured on Sentinel-2 of six real places, in tiles of 48 to 224 pixels, sets the limits. The same place on
another date reaches a correlation of 0.72 and differs by 17 codes of 255 or more; of 7,000 pairs of other tiles the most
alike reach 0.86. A copy in the other encoding or moved by whole pixels is equal; one with Gaussian noise of 3 codes has
0.98 to 0.998 and 2.4 codes (0.93 where the scene varies by no more than 10 codes), one through JPEG of quality 75 0.95 to
0.998 and 1.5 to 3.3 codes; one resampled half a pixel away 0.89 to 0.99 and 2 to 6 codes: mostly not found. Of tiles of
64 and 96 pixels cut again some pixels aside, all were found up to 5 % of the side, three quarters at 9 %, half at 12 %,
none beyond.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.spatial import cKDTree

from cromss.data.manifest import checksum_column, pixel_dtype
from cromss.data.store import Blocks, PatchStore, unpack_valid
from cromss.sensors import sensor

SAME = 0.98  # least correlation of a near-duplicate
CODES = 5.0  # its largest mean absolute difference, of 255
CELLS = 8  # per side
RADIUS = 16.0  # codes, root mean square over all cells and bands: a scene shifted by a third to a whole cell
FLAT = 2.0  # codes: a patch whose bands all vary less than that looks like any other
TURNS = ("as it is", "turned by 90°", "turned by 180°", "turned by 270°",
         "flipped", "flipped, turned by 90°", "flipped, turned by 180°", "flipped, turned by 270°")  # fmt: skip
_AXES = 24  # principal axes of the search tree
_PARTNERS = 8  # turned test patches that one pretraining patch may be a candidate for
_ALIKE = 0.25  # correlation of cell means: a copy moved by a whole cell has more, another scene mostly less
_ALIGNED = 4  # bands that a shift is looked for in
_CANDIDATES = 4  # per test patch, compared on the pixels


@dataclass(frozen=True)
class Row:
    """A patch and where it stands in its store: row `row` of a row group of a shard."""

    id: str
    shard: int
    group: int
    row: int


@dataclass(frozen=True)
class Pair:
    """Two patches compared on their pixels.

    turn         number of the flip or turn (TURNS) that brings the test patch onto the pretraining patch
    shift        (rows, columns) that it then has to move down and right
    correlation  of the codes of all bands, the mean of each band removed
    difference   mean absolute, in codes of 255
    """

    test: Row
    other: Row
    turn: int
    shift: tuple[int, int]
    correlation: float
    difference: float

    @property
    def duplicate(self) -> bool:
        """Whether it is the same picture."""
        return self.correlation >= SAME and self.difference <= CODES

    def __str__(self) -> str:
        how = TURNS[self.turn] if self.turn else ""
        moved = f"shifted by {self.shift[0]}, {self.shift[1]} pixels" if any(self.shift) else ""
        said = ", ".join(part for part in (how, moved) if part) or "as it is"
        return (
            f"{self.test.id} is {self.other.id}, {said} "
            f"(correlation {self.correlation:.4f}, mean difference {self.difference:.1f} codes)"
        )


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lens:
    """What of a patch is compared: some bands of one modality, the middle `side` x `side` pixels, as 8-bit codes."""

    modality: str
    bands: tuple[str, ...]
    side: int

    @classmethod
    def of(cls, *stores: PatchStore) -> "Lens":
        """What all stores have. Raises ValueError when that is nothing."""
        for modality in ("s2", "s1"):
            held = [store.bands.get(modality, ()) for store in stores]
            if bands := tuple(band for band in held[0] if all(band in other for other in held[1:])):
                return cls(modality, bands, min(side for store in stores for side in store.size))
        raise ValueError("no band in common: " + " beside ".join(f"{store.path} ({store.bands})" for store in stores))

    def columns(self) -> list[str]:
        """Of a row group, that `codes` needs."""
        pixels = [self.modality, "valid"]
        return ["patch_id", "location_id", "tile", *pixels, *map(checksum_column, pixels)]

    def codes(
        self, store: PatchStore, shard: int, table: pa.Table, rows: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes (R,C,side,side) uint8 and where there is data (R,side,side) bool, of some rows of a row group."""
        held, ids = store.bands[self.modality], table["patch_id"].to_pylist()
        chosen = [held.index(band) for band in self.bands]
        height, width = store.size
        top, left = (height - self.side) // 2, (width - self.side) // 2
        window = np.s_[..., top : top + self.side, left : left + self.side]
        codes = np.empty((len(rows), len(chosen), self.side, self.side), np.uint8)
        valid = np.ones((len(rows), self.side, self.side), bool)
        for number, row in enumerate(rows):
            cell = _cell(store, shard, table, self.modality, row, ids[row])
            pixels = np.frombuffer(cell, pixel_dtype(self.modality, store.encoding)).reshape(len(held), height, width)
            pixels = pixels[chosen][window]
            coded = store.encoding == "uint8"
            codes[number] = pixels if coded else sensor(self.modality).encode(pixels, self.bands)
            if (packed := _cell(store, shard, table, "valid", row, ids[row])) is not None:
                valid[number] = unpack_valid(packed, store.size)[window]
        return codes, valid


def _cell(store: PatchStore, shard: int, table: pa.Table, name: str, row: int, patch_id: str) -> pa.Buffer | None:
    cell = table[name][row].as_buffer()
    if cell is not None:
        store.check_cell(cell, patch_id, table[checksum_column(name)][row].as_py(), shard, name)
    return cell


def blocks_of(store: PatchStore, splits: tuple[str, ...]) -> Blocks:
    return store.blocks.where(np.isin(store.blocks.split, splits))


def acquisitions(blocks: Blocks) -> int:
    return int((blocks.n * blocks.rows).sum())


@dataclass(frozen=True)
class _Seen:
    """The patches of a row group: cell means (R, bands * 64) in codes, and which have contrast."""

    rows: list[Row]
    places: list[str]
    cells: np.ndarray
    varied: np.ndarray


def _seen(lens: Lens, store: PatchStore, splits: tuple[str, ...]) -> Iterator[_Seen]:
    """Every acquisition, row group by row group, read and averaged by threads a little ahead."""
    blocks = blocks_of(store, splits)
    groups = (
        (int(shard), int(first) + slot)
        for shard, first, n in zip(blocks.shard, blocks.first, blocks.n, strict=True)
        for slot in range(n)
    )
    with ThreadPoolExecutor(2) as pool:
        waiting: deque = deque(pool.submit(_look, lens, store, *group) for group in itertools.islice(groups, 4))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(_look, lens, store, *group) for group in itertools.islice(groups, 1))


def _look(lens: Lens, store: PatchStore, shard: int, group: int) -> _Seen:
    table = store.read(shard, group, lens.columns())
    ids = table["patch_id"].to_pylist()
    codes, _ = lens.codes(store, shard, table, range(len(ids)))
    pixels = codes.astype(np.float32)
    mean = _averages(lens.side)
    cells = mean @ pixels @ mean.T
    varied = (codes[..., ::2, ::2].std((2, 3), dtype=np.float32) >= FLAT).any(1)  # a quarter tells
    places = [f"{a}/{b}" for a, b in zip(table["location_id"].to_pylist(), table["tile"].to_pylist(), strict=True)]
    rows = [Row(name, shard, group, row) for row, name in enumerate(ids)]
    return _Seen(rows, places, cells.reshape(len(ids), -1), varied)


def _averages(side: int) -> np.ndarray:
    """(CELLS, side) weights that average cells of equal width, pixels cut where a border runs through them: so that a
    flipped patch has the flipped cells at any size."""
    edges = np.arange(CELLS + 1) * side / CELLS
    pixel = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.maximum(overlap, 0) * CELLS / side).astype(np.float32)


def turned(image: np.ndarray, turn: int) -> np.ndarray:
    """(...,N,N) in the flip or turn of that number (TURNS)."""
    return np.rot90(image[..., ::-1] if turn >= 4 else image, turn % 4, axes=(-2, -1))


# --- candidates -------------------------------------------------------------------------------------------------------


class Index:
    """The test patches in all turns, to be looked up by cell means."""

    def __init__(self, rows: list[Row], cells: np.ndarray, places: dict[str, str], flat: int):
        self.rows, self.places, self.flat, self.patches = rows, places, flat, len(rows) + flat
        grid = np.arange(CELLS * CELLS).reshape(CELLS, CELLS)
        self._orders = orders = [turned(grid, turn).ravel() for turn in range(len(TURNS))]
        self._cells = banded = cells.reshape(len(cells), cells.shape[1] // CELLS**2, CELLS**2)
        some = banded[np.random.default_rng(0).permutation(len(banded))[:4096]]
        spread = sum(_scatter(some[:, :, order]) for order in orders)
        self._axes = np.linalg.eigh(spread)[1][:, -_AXES:].astype(np.float32)
        versions = [banded[:, :, order].reshape(cells.shape) @ self._axes for order in orders]
        self._tree = cKDTree(np.stack(versions, axis=1).reshape(-1, self._axes.shape[1]))
        self._radius = RADIUS * np.sqrt(cells.shape[1])

    @classmethod
    def of(cls, lens: Lens, store: PatchStore, splits: tuple[str, ...], say: Callable[[str], None]) -> "Index":
        rows, cells, places, flat = [], [], {}, 0
        for group in _seen(lens, store, splits):
            flat += int((~group.varied).sum())
            cells.append(group.cells[group.varied])
            for row, place, varied in zip(group.rows, group.places, group.varied, strict=True):
                if varied:
                    rows.append(row)
                    places[row.id] = place
        say(f"{len(rows) + flat:,} test patches read")
        return cls(rows, np.concatenate(cells), places, flat)

    def candidates(self, lens: Lens, store: PatchStore, say: Callable[[str], None]) -> list[tuple[Row, Row, int]]:
        """(test patch, pretraining patch, turn): for every test patch the nearest few within the radius."""
        hits: list[tuple[int, float, Row, int]] = []
        total = acquisitions(blocks_of(store, ("train",)))
        done, told = 0, 0
        for group in _seen(lens, store, ("train",)):
            if self.rows and group.varied.any():
                own = [row for row, varied in zip(group.rows, group.varied, strict=True) if varied]
                distance, version = self._tree.query(
                    group.cells[group.varied] @ self._axes, k=_PARTNERS, distance_upper_bound=self._radius
                )
                cells = group.cells[group.varied].reshape(len(own), *self._cells.shape[1:])
                for i, j in np.argwhere(np.isfinite(distance)):
                    test, turn = divmod(int(version[i, j]), len(TURNS))
                    known = self._cells[test][:, self._orders[turn]]
                    if _correlation(known, cells[i]) >= _ALIKE:
                        hits.append((test, float(np.linalg.norm(known - cells[i])), own[i], turn))
            if len(hits) > 2 * _CANDIDATES * len(self.rows) + 100_000:
                hits = _nearest_few(hits)
            done += len(group.rows)
            if done - told >= 4096 or done == total:
                told = done
                say(f"{done:,}/{total:,} pretraining patches read, {len(hits):,} candidates")
        return [(self.rows[test], row, turn) for test, _, row, turn in _nearest_few(hits)]


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of two (C,N), the mean of each row removed; 1 where one of them is constant and nothing can be told."""
    a, b = (part - part.mean(1, keepdims=True) for part in (one, other))
    power = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / power if power else 1.0


def _scatter(cells: np.ndarray) -> np.ndarray:
    flat = cells.reshape(len(cells), cells.shape[1] * cells.shape[2]).astype(np.float64)
    flat = flat - flat.mean(0) if len(flat) else flat
    return flat.T @ flat


def _nearest_few(hits: list[tuple[int, float, Row, int]]) -> list[tuple[int, float, Row, int]]:
    """The _CANDIDATES nearest of each test patch."""
    hits = sorted(hits, key=lambda hit: (hit[0], hit[1], hit[2].id))
    grouped = itertools.groupby(hits, key=lambda hit: hit[0])
    return [hit for _, group in grouped for hit in itertools.islice(group, _CANDIDATES)]


# --- the pixels themselves --------------------------------------------------------------------------------------------


def compared(
    lens: Lens,
    candidates: list[tuple[Row, Row, int]],
    pretraining: PatchStore,
    downstream: PatchStore,
    say: Callable[[str], None],
) -> list[Pair]:
    pairs = []
    read: dict[str, tuple] = {}  # the pixels of the test patch at hand: its candidates follow each other
    for number, (test, other, turn) in enumerate(candidates, 1):
        if test.id not in read:
            read = {test.id: read_row(lens, downstream, test)}
        codes, valid = (turned(part, turn) for part in read[test.id])
        if measured := compare(codes, valid, *read_row(lens, pretraining, other)):
            pairs.append(Pair(test, other, turn, *measured))
        if number % 512 == 0 or number == len(candidates):
            say(
                f"{number:,}/{len(candidates):,} candidates compared, {sum(p.duplicate for p in pairs):,} near-duplicates"
            )
    return pairs


def read_row(lens: Lens, store: PatchStore, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Codes (C,side,side) and valid (side,side) of one patch."""
    codes, valid = lens.codes(store, row.shard, store.read(row.shard, row.group, lens.columns()), [row.row])
    return codes[0], valid[0]


def compare(
    one: np.ndarray, one_valid: np.ndarray, other: np.ndarray, other_valid: np.ndarray
) -> tuple[tuple[int, int], float, float] | None:
    """(shift, correlation, difference) of two stacks of codes (C,N,N): as they lie, or, unless that is a near-duplicate,
    at the shift where they fit best. None where too little is there to compare: less than half of a patch with data in
    both, or no contrast."""
    still = _agreement(one, one_valid, other, other_valid, (0, 0))
    if still and still[1] >= SAME and still[2] <= CODES:
        return still
    moved = _agreement(one, one_valid, other, other_valid, _displacement(one, other))
    return max((found for found in (still, moved) if found), key=lambda found: found[1], default=None)


def _agreement(
    one: np.ndarray, one_valid: np.ndarray, other: np.ndarray, other_valid: np.ndarray, shift: tuple[int, int]
) -> tuple[tuple[int, int], float, float] | None:
    a, b = _laid_over(one, other, shift)
    inside = np.logical_and(*_laid_over(one_valid, other_valid, shift))
    if inside.sum() < one_valid.size / 2:
        return None
    a, b = a[:, inside].astype(np.float32), b[:, inside].astype(np.float32)
    if min(a.std(1).max(), b.std(1).max()) < FLAT:
        return None
    return shift, _correlation(a, b), float(np.abs(a - b).mean())


def _laid_over(one: np.ndarray, other: np.ndarray, shift: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The parts of two (...,N,N) that cover each other once the first has moved down and right by `shift`."""
    n = one.shape[-1]
    mine = tuple(slice(max(-by, 0), n - max(by, 0)) for by in shift)
    theirs = tuple(slice(max(by, 0), n - max(-by, 0)) for by in shift)
    return one[(..., *mine)], other[(..., *theirs)]


def _displacement(one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """How far the first has to move down and right to fit the other best, at most an eighth of the side: the peak of the
    cross-correlation of a few bands, faded out towards the borders."""
    n, apart = one.shape[-1], -(-len(one) // _ALIGNED)
    one, other = one[::apart], other[::apart]
    fade = np.hanning(n + 2)[1:-1].astype(np.float32)
    fade = fade[:, None] * fade
    spectra = [np.fft.rfft2((part - part.mean((1, 2), keepdims=True)) * fade) for part in (one, other)]
    peaks = np.fft.irfft2((spectra[1] * spectra[0].conj()).sum(0), s=(n, n))
    reach = n // CELLS
    near = np.r_[0 : reach + 1, -reach:0]
    row, column = np.unravel_index(peaks[np.ix_(near, near)].argmax(), (len(near), len(near)))
    return int(near[row]), int(near[column])
