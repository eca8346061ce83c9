"""How fast patches reach the training loop, against bare pyarrow."""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cromss import sensors
from cromss.contract import physical
from cromss.data.assembly import Assembler, Rows, Wanted
from cromss.data.patch import Batch, Patch
from cromss.data.plan import Plan
from cromss.data.store import PatchStore, StoreWriter
from cromss.data.stream import DirectReader, RayReader, in_lockstep, open_batches

RUNS = 3  # of each reader, in turns; the table has the fastest, which the rest of the machine disturbed least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench stream`."""
    parser.add_argument("--store", type=Path, help="a patch store (default: random pixels in a temporary one)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of one run (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="patches of a batch (default: %(default)s)")
    parser.add_argument("--split", default="train")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print the table."""
    if options.store is not None:
        measure_stream(PatchStore.open(options.store), options)
        return 0
    with tempfile.TemporaryDirectory(prefix="cromss-bench-") as folder:
        print("writing 512 patches of random pixels, 128 places x 4 seasons, 264 x 264 pixels ...", flush=True)
        measure_stream(write_random_store(Path(folder) / "store"), options)
    return 0


@dataclass(frozen=True)
class Rate:
    """One run over a plan: seconds to the first batch and over all, patches delivered."""

    first: float
    seconds: float
    patches: int

    @property
    def per_second(self) -> float:
        return self.patches / self.seconds


def measure_stream(store: PatchStore, options: argparse.Namespace) -> None:
    """Print patches/s and time to first batch of every reader, and the bytes an epoch reads."""
    from cromss.ray_session import connect

    plan = Plan(store.blocks, seed=0, epochs=options.epochs, batch_size=options.batch_size, split=options.split)
    print(
        f"{len(plan.chosen)} blocks, {plan.rows} patches an epoch, {plan.epochs} epochs in one run, batches of "
        f"{plan.batch_size}; {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    connect()
    by_ray = RayReader()
    cold = timed(open_batches(store, plan, reader=by_ray)).first
    readers: dict[str, Callable[[], Iterator[Batch]]] = {
        "bare pyarrow": lambda: bare_batches(store, plan),
        "direct reader": lambda: open_batches(store, plan, reader=DirectReader()),
        "Ray reader": lambda: open_batches(store, plan, reader=by_ray),
    }
    timed(bare_batches(store, plan))  # the page cache holds the store from now on
    runs = {name: [] for name in readers}
    for _ in range(RUNS):
        for name, batches in readers.items():
            runs[name].append(timed(batches()))
    best = {name: max(found, key=lambda rate: rate.per_second) for name, found in runs.items()}
    bare = best["bare pyarrow"].per_second
    print(f"\n{'':14} {'patches/s':>10} {'of bare':>8} {'MB/s':>7} {'first batch':>12}")
    for name, rate in best.items():
        megabytes = rate.per_second * patch_bytes(store) / 1e6
        print(
            f"{name:14} {rate.per_second:10,.0f} {rate.per_second / bare:8.0%} {megabytes:7,.0f} {rate.first:10.2f} s"
        )
    print(f"\nfirst batch of the Ray reader while its processes start: {cold:.2f} s")
    print(f"an epoch reads {bytes_per_epoch(store, plan):.1%} of the split's bytes")


def timed(batches: Iterator[Batch]) -> Rate:
    """Run through the batches."""
    start, first, patches = time.perf_counter(), None, 0
    for batch in batches:
        first = first or time.perf_counter() - start
        patches += len(batch)
    return Rate(first, time.perf_counter() - start, patches)


def bare_batches(store: PatchStore, plan: Plan) -> Iterator[Batch]:
    """The ceiling: one thread reads memory-mapped row groups, unchecked, and assembles the same batches in between."""
    wanted, lanes = Wanted.of(store), plan.lanes_of(0, 1)
    files = [pq.ParquetFile(store.path / shard.path, memory_map=True) for shard in store.manifest.shards]
    shards, first = store.blocks.shard, store.blocks.first

    def windows() -> Iterator[Rows]:
        for window in plan.windows(lanes, 0, plan.count(lanes)):
            groups = zip(shards[window.blocks], first[window.blocks] + window.slots, strict=True)
            tables = [files[shard].read_row_group(group, columns=wanted.columns) for shard, group in groups]
            yield Rows(window, pa.concat_tables(tables))

    return in_lockstep(windows(), plan, lanes, 0, Assembler(store, wanted, plan.seed))


def bytes_per_epoch(store: PatchStore, plan: Plan) -> float:
    """Bytes that a direct stream reads in an epoch, on average over the run, as a share of the split's shards."""
    read, whole = 0, 0
    lanes, columns = plan.lanes_of(0, 1), set(Wanted.of(store).columns)
    sizes = [pq.read_metadata(store.path / shard.path) for shard in store.manifest.shards]

    def size(block: int, slot: int, only: set[str] | None) -> int:
        group = sizes[store.blocks.shard[block]].row_group(int(store.blocks.first[block] + slot))
        parts = [group.column(i) for i in range(group.num_columns)]
        return sum(part.total_compressed_size for part in parts if only is None or part.path_in_schema in only)

    for window in plan.windows(lanes, 0, plan.count(lanes)):
        read += sum(size(block, slot, columns) for block, slot in zip(window.blocks, window.slots, strict=True))
    for block in plan.chosen:
        whole += sum(size(block, slot, None) for slot in range(store.blocks.n[block]))
    return read / plan.epochs / whole


def patch_bytes(store: PatchStore) -> float:
    """Bytes of one stored patch."""
    return sum(shard.bytes for shard in store.manifest.shards) / sum(store.manifest.patches.values())


def write_random_store(path: Path, places: int = 128, seasons: int = 4, size: int = 264) -> PatchStore:
    """Random pixels in the shape of SSL4EO-S12: both sensors, all bands."""
    bands = {name: card.bands for name, card in sensors.SENSORS.items()}
    rng = np.random.default_rng(0)
    with StoreWriter(path, scheme="dynamic-world", bands=bands, size=(size, size)) as writer:
        for place in range(places):
            writer.add([_random_patch(rng, place, season, size) for season in range(seasons)], "train", 0)
    return PatchStore.open(path)


def _random_patch(rng: np.random.Generator, place: int, season: int, size: int) -> Patch:
    return Patch(
        patch_id=f"{place:07d}/{season}",
        location_id=f"{place:07d}",
        acquisition=str(season),
        images={
            "s1": rng.random((2, size, size), np.float32) * 30 - 30,
            "s2": rng.integers(0, 4000, (13, size, size), np.uint16),
        },
        contracts={name: physical(name, card.bands) for name, card in sensors.SENSORS.items()},
        label=rng.integers(0, 9, (size, size), np.uint8),
    )
