"""The plan: which row groups are read, which season of each, in which order. Pure arithmetic; reads nothing.

Every epoch draws one slot of every block, permutes the blocks and deals them to a fixed number of lanes. Blocks of
equal size go round, continuing over the epochs, so that the lanes never drift apart by more than a block of each size.
A lane takes a window of row groups at a time and permutes the rows in it; the first window of an epoch is shorter in
some lanes, so that they do not all need their next window in the same step. Step t takes the rows [t B/lanes,
(t+1) B/lanes) of every lane: a step number is the whole state of the stream, and the rows of a step do not depend on
how many workers share the lanes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from cromss.data.store import Blocks
from cromss.settings import suggest

Seasons = Literal["random", "cycle"]


@dataclass(frozen=True)
class Window:
    """Row groups read together. Row j of the window is row order[j] of their concatenation, and row first + j of the
    lane. `blocks` index the store's block table."""

    lane: int
    epoch: int
    first: int
    blocks: np.ndarray
    slots: np.ndarray
    order: np.ndarray


class Plan:
    """The order of a training run.

    blocks         the store's block table
    epochs         of the whole run: the plan of a run that is resumed is the same plan
    batch_size     rows of a step over all workers
    lanes, window  fixed by the configuration, whatever the number of workers; window counts row groups
    seasons        `random`: a slot drawn for every block and epoch (the paper); `cycle`: every slot once in n epochs
    split, folds, exclude_folds   which blocks take part; folds = None is all of them

    steps    full batches in the run; `dropped` rows at its end make no full batch
    rows     N, rows of one epoch

    Raises ValueError when nothing is selected or batch size and lanes do not fit.
    """

    def __init__(
        self,
        blocks: Blocks,
        *,
        seed: int,
        epochs: int,
        batch_size: int,
        lanes: int = 8,
        window: int = 4,
        seasons: Seasons = "random",
        split: str = "train",
        folds: Sequence[int] | None = None,
        exclude_folds: Sequence[int] = (),
    ):
        self.arguments = {
            "seed": seed,
            "epochs": epochs,
            "batch_size": batch_size,
            "lanes": lanes,
            "window": window,
            "seasons": seasons,
            "split": split,
            "folds": None if folds is None else list(folds),
            "exclude_folds": list(exclude_folds),
        }
        self.blocks = blocks
        self.chosen = select(blocks, split, folds, exclude_folds)
        self.seed, self.epochs, self.batch_size = seed, epochs, batch_size
        self.lanes, self.window, self.seasons = lanes, window, seasons
        _check_lanes(batch_size, lanes)
        self.rows_per_lane = batch_size // lanes  # of one step
        self._n, self._sizes = blocks.n[self.chosen], blocks.rows[self.chosen]
        sizes, counts = np.unique(self._sizes, return_counts=True)
        starts = np.cumsum(counts) - counts  # where the dealing of a size starts, or all single blocks meet in one lane
        self._classes = list(zip(sizes.tolist(), counts.tolist(), starts.tolist(), strict=True))
        self.rows = int(self._sizes.sum())
        self.steps = min(self._lane_rows(epochs, lane) for lane in range(lanes)) // self.rows_per_lane
        self.dropped = epochs * self.rows - self.steps * batch_size
        if self.steps < 1:
            raise ValueError(
                f"{self.rows} patches in {len(self.chosen)} blocks, {epochs} epochs, fill no batch of {batch_size} "
                f"in {lanes} lanes: lower the batch size or the lanes, or train for more epochs"
            )
        self._epoch = lru_cache(maxsize=2)(self._deal)
        self._lane = lru_cache(maxsize=2 * lanes)(self._list)
        self._turns = lru_cache(maxsize=2)(self._take_turns)
        self._windows = np.array([self._epoch_windows(epoch) for epoch in range(lanes)])  # (lanes epochs, lanes)

    def epoch_of(self, step: int) -> int:
        """floor(t B / N)."""
        return step * self.batch_size // self.rows

    def first_step(self, epoch: int) -> int:
        """The first step t with epoch_of(t) == epoch, at most `steps`."""
        return min(self.steps, -(-epoch * self.rows // self.batch_size))

    @property
    def row_groups_per_window(self) -> float:
        """On average: less than `window` where an epoch deals few to a lane."""
        return self.lanes * len(self.chosen) / self._windows.sum()

    def lanes_of(self, rank: int, world: int) -> range:
        """The lanes that a worker reads: neighbours, so that the workers' rows in rank order are the step's rows."""
        check_world(world, self.lanes)
        share = self.lanes // world
        return range(rank * share, (rank + 1) * share)

    def count(self, lanes: range, epochs: int | None = None) -> int:
        """Windows of these lanes in the first `epochs` epochs (default: all)."""
        epochs = self.epochs if epochs is None else epochs
        cycle = self._windows[:, lanes.start : lanes.stop].sum(axis=1)
        return int(epochs // self.lanes * cycle.sum() + cycle[: epochs % self.lanes].sum())

    def first_window(self, lanes: range, step: int) -> int:
        """The number of the first window that holds a row of step `step` or later in one of these lanes."""
        return min((self._window_of(lane, lanes, step * self.rows_per_lane) for lane in lanes), default=0)

    def windows(self, lanes: range, start: int, stop: int) -> Iterator[Window]:
        """Windows number start..stop-1 of these lanes, epoch by epoch, in the order in which steps need them."""
        epoch = self._epoch_of_window(lanes, start) if start < stop else 0
        before = self.count(lanes, epoch)
        while before < stop:
            turns = self._turns(lanes, epoch % self.lanes)
            for number in range(max(0, start - before), min(len(turns), stop - before)):
                yield self._window(epoch, *turns[number].tolist())
            before += len(turns)
            epoch += 1

    # --- one epoch ----------------------------------------------------------------------------------------------------

    def _deal(self, epoch: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray | None]]:
        """(slot of every chosen block, the chosen blocks permuted, per class their positions in that; None = all)."""
        order = self._rng("deal", epoch).permutation(np.arange(len(self.chosen), dtype=np.int32))
        one = len(self._classes) == 1
        members = [None if one else np.flatnonzero(self._sizes[order] == size) for size, _, _ in self._classes]
        return self._slots(epoch), order, members

    def _list(self, epoch: int, lane: int) -> tuple[np.ndarray, np.ndarray]:
        """(the chosen blocks of a lane in reading order, the row of the epoch's share at which each ends)."""
        _, order, members = self._epoch(epoch)
        positions = []
        for (_, blocks, start), of_class in zip(self._classes, members, strict=True):
            first = (lane - start - epoch * blocks) % self.lanes
            positions.append(
                np.arange(first, blocks, self.lanes) if of_class is None else of_class[first :: self.lanes]
            )
        dealt = order[positions[0]] if len(positions) == 1 else order[np.sort(np.concatenate(positions))]
        blocks = self._rng("lane", epoch, lane).permutation(dealt)
        return blocks, np.cumsum(self._sizes[blocks])

    def _slots(self, epoch: int) -> np.ndarray:
        slots = np.empty(len(self.chosen), np.int16)
        for n in np.unique(self._n):
            members = np.flatnonzero(self._n == n)
            if self.seasons == "random":
                slots[members] = self._rng("slot", epoch, int(n)).integers(n, size=len(members), dtype=np.int16)
            else:
                draws = self._rng("cycle", epoch // int(n), int(n)).random((len(members), n))
                slots[members] = draws.argsort(axis=1)[:, epoch % int(n)]
        return slots

    def _window(self, epoch: int, k: int, lane: int) -> Window:
        slots, (blocks, ends) = self._epoch(epoch)[0], self._lane(epoch, lane)
        start = max(0, k * self.window - self._shift(lane))
        mine = blocks[start : (k + 1) * self.window - self._shift(lane)]
        before = int(ends[start - 1]) if start else 0
        return Window(
            lane=lane,
            epoch=epoch,
            first=self._lane_rows(epoch, lane) + before,
            blocks=self.chosen[mine],
            slots=slots[mine].astype(np.int64),
            order=self._rng("rows", epoch, lane, k).permutation(int(self._sizes[mine].sum())),
        )

    def _rng(self, what: str, *numbers: int) -> np.random.Generator:
        purposes = ("deal", "lane", "slot", "cycle", "rows")
        return np.random.default_rng([self.seed, purposes.index(what), *numbers])

    # --- closed forms over epochs -------------------------------------------------------------------------------------

    def _lane_blocks(self, epochs: int, lane: int) -> list[tuple[int, int]]:
        """(size, blocks of that size) that the first `epochs` epochs deal to this lane."""
        return [
            (size, (epochs * blocks + self.lanes - 1 - (lane - start) % self.lanes) // self.lanes)
            for size, blocks, start in self._classes
        ]

    def _lane_rows(self, epochs: int, lane: int) -> int:
        return sum(size * blocks for size, blocks in self._lane_blocks(epochs, lane))

    def _epoch_windows(self, epoch: int) -> list[int]:
        """Windows of every lane in that epoch; repeats after `lanes` epochs, as the dealing does."""
        windows = []
        for lane in range(self.lanes):
            before, after = (sum(blocks for _, blocks in self._lane_blocks(e, lane)) for e in (epoch, epoch + 1))
            windows.append(-(-(after - before + self._shift(lane)) // self.window) if after > before else 0)
        return windows

    def _shift(self, lane: int) -> int:
        """By how many row groups the first window of an epoch is shorter."""
        return lane * self.window // self.lanes

    def _take_turns(self, lanes: range, epoch: int) -> np.ndarray:
        """(position, lane) of each of an epoch's windows, in the order in which steps need them; (windows, 2)."""
        windows = self._windows[epoch, lanes.start : lanes.stop]
        lane = np.repeat(np.array(lanes, np.int32), windows)
        position = np.concatenate([np.arange(count, dtype=np.int32) for count in windows])
        start = np.maximum(0, position * self.window - lane * self.window // self.lanes)
        order = np.argsort(start, kind="stable")  # ties in the order of the lanes
        return np.stack([position[order], lane[order]], axis=1)

    def _epoch_of_window(self, lanes: range, number: int) -> int:
        return _last(lambda epoch: self.count(lanes, epoch) <= number)

    def _window_of(self, lane: int, lanes: range, row: int) -> int:
        """Number, among the windows of `lanes`, of the window that holds that row of the lane."""
        epoch = _last(lambda epoch: self._lane_rows(epoch, lane) <= row)
        if epoch >= self.epochs:
            return self.count(lanes)
        ends = self._lane_rows(epoch, lane) + self._lane(epoch, lane)[1]
        k = (int(np.searchsorted(ends, row, side="right")) + self._shift(lane)) // self.window
        turns = self._turns(lanes, epoch % self.lanes)
        return self.count(lanes, epoch) + int(np.flatnonzero((turns == (k, lane)).all(axis=1))[0])


def every_row(
    blocks: Blocks,
    *,
    split: str,
    folds: Sequence[int] | None = None,
    exclude_folds: Sequence[int] = (),
    slot: int | None = 0,
    rank: int = 0,
    world: int = 1,
) -> list[Window]:
    """Every place of these folds once, in file order, in one fixed slot (None: every acquisition of every place).

    The workers share the row groups and drop none, so their numbers of rows differ.
    """
    pairs = [
        (block, s)
        for block in select(blocks, split, folds, exclude_folds)
        for s in (range(blocks.n[block]) if slot is None else [slot % int(blocks.n[block])])
    ]
    windows, first = [], 0
    for block, s in pairs[rank::world]:
        rows = int(blocks.rows[block])
        windows.append(Window(0, 0, first, np.array([block]), np.array([s]), np.arange(rows)))
        first += rows
    return windows


def select(
    blocks: Blocks, split: str, folds: Sequence[int] | None = None, exclude_folds: Sequence[int] = ()
) -> np.ndarray:
    """Indices of the blocks of a split and folds. Raises ValueError when there are none."""
    mask = blocks.split == split
    if not mask.any():
        raise ValueError(f"split {split!r}: the store has none{suggest(split, np.unique(blocks.split).tolist())}")
    present = np.unique(blocks.fold[mask]).tolist()
    for fold in (*(folds or ()), *exclude_folds):
        if fold not in present:
            raise ValueError(f"fold {fold}: the split {split!r} has the folds {present[0]} to {present[-1]}")
    if folds is not None:
        mask &= np.isin(blocks.fold, list(folds))
    for fold in exclude_folds:
        mask &= blocks.fold != fold
    if not mask.any():
        raise ValueError(f"split {split!r}: no fold is left; it has {len(present)}, keep at least one")
    return np.flatnonzero(mask).astype(np.int32)


def check_world(world: int, lanes: int) -> None:
    """Raises ValueError, listing the valid numbers of workers, unless every worker gets equally many lanes."""
    valid = [w for w in range(1, lanes + 1) if lanes % w == 0]
    if world not in valid:
        raise ValueError(f"{world} workers cannot share {lanes} lanes equally; valid: {', '.join(map(str, valid))}")


def _check_lanes(batch_size: int, lanes: int) -> None:
    if batch_size < 1 or lanes < 1 or batch_size % lanes:
        divisors = [d for d in range(1, batch_size + 1) if batch_size % d == 0]
        raise ValueError(
            f"lanes={lanes}: must divide the batch size {batch_size}; valid: {', '.join(map(str, divisors))}"
        )


def _last(holds) -> int:
    """The largest integer >= 0 for which a monotone condition holds; it must hold at 0 and fail somewhere."""
    high = 1
    while holds(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
