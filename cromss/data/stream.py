"""Plan to batches. Two readers of one plan: threads with pyarrow, and Ray Data; they give equal rows.

A stream covers all epochs that remain: nothing is restarted between epochs. Every worker reads its own lanes.
"""

import contextlib
import functools
import json
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pyarrow as pa
import pydantic

from cromss.data.assembly import Assembler, Rows, Wanted, read_window
from cromss.data.cache import CacheConfig
from cromss.data.patch import Batch
from cromss.data.plan import Plan, Window, every_row
from cromss.data.store import Lost, PatchStore
from cromss.data.tasks import run_tasks
from cromss.settings import Settings

TASKS_PER_EXECUTION = 10_000  # Ray Data lists the tasks of an execution up front; at 8 row groups a task, 1.3 M patches


@dataclass(frozen=True)
class Share:
    """What one of `world` workers reads: the windows of its lanes from number `start` on."""

    plan: Plan
    lanes: range
    start: int
    world: int

    @property
    def stop(self) -> int:
        return self.plan.count(self.lanes)


class DirectReader(Settings):
    """Threads that read ahead. The fastest where the store is on a local or mounted file system."""

    kind: Literal["direct"] = "direct"
    threads: int = pydantic.Field(2, ge=1)
    prefetch: int = pydantic.Field(3, ge=1)  # windows

    def rows(self, store: PatchStore, share: Share, wanted: Wanted) -> Iterator[Rows]:
        """The windows of a share, in order."""
        windows = share.plan.windows(share.lanes, share.start, share.stop)
        return _read_ahead(store, windows, wanted, self.threads, self.prefetch)


class RayReader(Settings):
    """Ray Data: one execution over all remaining epochs, on any node that can see the store's path."""

    kind: Literal["ray"] = "ray"
    readers: int = pydantic.Field(1, ge=1)  # tasks of one worker at a time
    cpus: float = pydantic.Field(1.0, gt=0)  # of each
    row_groups_per_task: int = pydantic.Field(8, ge=1)  # measured: 2 row groups a task read half as fast as 8

    def rows(self, store: PatchStore, share: Share, wanted: Wanted) -> Iterator[Rows]:
        """The windows of a share, in order. Raises ValueError when Ray is not running."""
        import ray

        if not ray.is_initialized():
            raise ValueError("reader kind=ray: Ray is not running; start it (ray.init), or choose kind=direct")
        return self._rows(_Recipe.of(store, share, wanted), share)

    def _rows(self, recipe: "_Recipe", share: Share) -> Iterator[Rows]:
        per_task = max(1, round(self.row_groups_per_task / share.plan.row_groups_per_window))
        segment = TASKS_PER_EXECUTION * per_task
        for begin in range(share.start, share.stop, segment):
            end = min(begin + segment, share.stop)
            tasks = [(first, min(first + per_task, end)) for first in range(begin, end, per_task)]
            tables = self._execute(recipe, tasks, share.world)
            try:
                yield from _reassemble(share.plan.windows(share.lanes, begin, end), tables)
            finally:
                tables.close()

    def _execute(self, recipe: "_Recipe", tasks: list[tuple[int, int]], world: int) -> Iterator[pa.Table]:
        reading = [functools.partial(recipe.read, *task) for task in tasks]
        share = 0.5 / world  # of the object store: every worker has a stream of its own
        return run_tasks(reading, at_a_time=self.readers, cpus=self.cpus, in_order=True, object_store_share=share)


Reader = Annotated[RayReader | DirectReader, pydantic.Field(discriminator="kind")]


def open_batches(
    store: PatchStore,
    plan: Plan,
    *,
    reader: RayReader | DirectReader | None = None,
    rank: int = 0,
    world: int = 1,
    start_step: int = 0,
    bands: dict[str, Sequence[str]] | None = None,
    clean: bool = False,
    seasons: bool = False,
) -> Iterator[Batch]:
    """This worker's share of the batches of steps start_step..plan.steps-1: batch_size / world rows each.

    bands    modality -> bands to deliver, in that order; modalities left out are not read; None = all
    clean    deliver the clean labels;  seasons  deliver the labels of all acquisitions, in time order

    Close the iterator (or exhaust it) to stop reading. Raises ValueError for bands the store lacks, a number of workers
    that does not divide the lanes, or a damaged shard.
    """
    wanted = Wanted.of(store, bands, clean, seasons)
    lanes = plan.lanes_of(rank, world)
    start = plan.first_window(lanes, start_step) if start_step < plan.steps else plan.count(lanes)
    rows = (reader or DirectReader()).rows(store, Share(plan, lanes, start, world), wanted)
    return _background(in_lockstep(rows, plan, lanes, start_step, Assembler(store, wanted, plan.seed)))


def open_rows(
    store: PatchStore,
    *,
    batch_size: int,
    split: str,
    folds: Sequence[int] | None = None,
    exclude_folds: Sequence[int] = (),
    slot: int | None = 0,
    rank: int = 0,
    world: int = 1,
    bands: dict[str, Sequence[str]] | None = None,
    clean: bool = False,
) -> Iterator[Batch]:
    """For evaluation: every place of these folds once, fixed order, one fixed slot (None: every acquisition).

    The workers share the rows and drop none; the last batch may be short. Always read directly: a Ray Data execution
    costs seconds to start, which each evaluation would pay again.
    """
    wanted = Wanted.of(store, bands, clean)
    windows = every_row(
        store.blocks, split=split, folds=folds, exclude_folds=exclude_folds, slot=slot, rank=rank, world=world
    )
    return _background(_evaluation(store, windows, wanted, batch_size))


def _evaluation(store: PatchStore, windows: list[Window], wanted: Wanted, batch_size: int) -> Iterator[Batch]:
    assembler, waiting = Assembler(store, wanted, seed=0), deque()
    loaded = _read_ahead(store, windows, wanted, threads=2, prefetch=3)
    try:
        for rows in loaded:
            waiting.extend((rows, int(row)) for row in rows.window.order)
            while len(waiting) >= batch_size:
                yield assembler.batch([waiting.popleft() for _ in range(batch_size)])
        if waiting:
            yield assembler.batch(list(waiting))
    finally:
        loaded.close()


def in_lockstep(
    loaded: Iterator[Rows], plan: Plan, lanes: range, start_step: int, assembler: Assembler
) -> Iterator[Batch]:
    """The batches of steps start_step and on: every step takes rows_per_lane rows of each lane."""
    waiting: dict[int, deque] = {lane: deque() for lane in lanes}
    first_row = start_step * plan.rows_per_lane
    try:
        for _ in range(start_step, plan.steps):
            while min(len(rows) for rows in waiting.values()) < plan.rows_per_lane:
                rows = next(loaded)
                skip = max(0, first_row - rows.window.first)
                waiting[rows.window.lane].extend((rows, int(row)) for row in rows.window.order[skip:])
            yield assembler.batch([waiting[lane].popleft() for lane in lanes for _ in range(plan.rows_per_lane)])
    finally:
        loaded.close()


def _background(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Batches assembled by a thread, one ahead. Its errors are raised here; closing stops it."""
    ahead: queue.Queue[Any] = queue.Queue(1)
    stop, end = threading.Event(), object()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                return ahead.put(item, timeout=0.1)
            except queue.Full:
                continue

    def assemble() -> None:
        try:
            with contextlib.closing(batches):
                for batch in batches:
                    put(batch)
                    if stop.is_set():
                        return
            put(end)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=assemble, name="cromss-assembler", daemon=True)
    thread.start()
    try:
        while (item := ahead.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


# --- direct -----------------------------------------------------------------------------------------------------------


def _read_ahead(
    store: PatchStore, windows: Iterable[Window], wanted: Wanted, threads: int, prefetch: int
) -> Iterator[Rows]:
    """Windows read by threads, `prefetch` ahead, in order. Their errors are raised here; closing stops them."""

    def read(window: Window) -> Rows:
        return Rows(window, read_window(store, window, wanted.columns, wanted.seasons))

    pool = ThreadPoolExecutor(threads, thread_name_prefix="cromss-reader")
    ahead: deque[Future[Rows]] = deque()
    try:
        for window in windows:
            ahead.append(pool.submit(read, window))
            if len(ahead) > prefetch:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


# --- Ray Data ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Recipe:
    """All a reader process needs to find its windows: names and numbers, no plan and no table."""

    path: str
    digest: str
    without: tuple[Lost, ...]
    cache: CacheConfig
    plan: str  # its arguments, JSON
    lanes: range
    wanted: Wanted

    @classmethod
    def of(cls, store: PatchStore, share: Share, wanted: Wanted) -> "_Recipe":
        plan = json.dumps(share.plan.arguments)
        return cls(str(store.path), store.digest, store.without, store.cache, plan, share.lanes, wanted)

    def read(self, start: int, stop: int) -> Iterator[pa.Table]:
        """Windows number start..stop-1, one table each."""
        store, plan = _opened(self.path, self.digest, self.without, self.cache, self.plan)
        for window in plan.windows(self.lanes, start, stop):
            yield read_window(store, window, self.wanted.columns, self.wanted.seasons)


@functools.lru_cache(maxsize=2)
def _opened(
    path: str, digest: str, without: tuple[Lost, ...], cache: CacheConfig, plan: str
) -> tuple[PatchStore, Plan]:
    store = PatchStore.open(path, check=False, without=without, cache=cache)
    if store.digest != digest:
        raise ValueError(f"{path}: is not the store that this run started with (its manifest differs)")
    return store, Plan(store.blocks, **json.loads(plan))


def _reassemble(windows: Iterator[Window], tables: Iterator[pa.Table]) -> Iterator[Rows]:
    """Blocks as Ray Data cut them, joined or split, back to one table a window."""
    waiting: deque[pa.Table] = deque()
    for window in windows:
        missing, parts = len(window.order), []
        while missing:
            table = waiting.popleft() if waiting else next(tables)
            if len(table) > missing:
                waiting.appendleft(table.slice(missing))
            parts.append(table.slice(0, missing))
            missing -= len(parts[-1])
        yield Rows(window, pa.concat_tables(parts))
