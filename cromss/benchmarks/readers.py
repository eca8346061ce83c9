"""The streams that `bench stream` compares, each as an iterator of batches or a function that times one."""

import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import torch
from rasterio.enums import Resampling

from cromss.data.assembly import Assembler, Rows, Wanted
from cromss.data.patch import Batch
from cromss.data.plan import Plan
from cromss.data.sources.ssl4eo import Ssl4eo
from cromss.data.store import PatchStore
from cromss.data.stream import DirectReader, RayReader, in_lockstep, open_batches
from cromss.ray_session import unique_name
from cromss.sensors import SENTINEL1, SENTINEL2

WORKERS, WORKER_CPUS, READER_CPUS = 2, 0.5, 0.25  # of the Train measurement: as a machine of two CPUs is shared


@dataclass(frozen=True)
class Rate:
    """One run through a stream: patches delivered, seconds in all and to the first batch, the longest wait for a batch
    after it, and the longest for one that begins an epoch."""

    patches: int
    seconds: float
    first: float
    gap: float = 0.0
    border: float = 0.0

    @property
    def per_second(self) -> float:
        """Patches a second, the start included."""
        return self.patches / self.seconds


def timed(batches: Iterable[Batch]) -> Rate:
    """Run through the batches, as fast as they come."""
    start = last = time.perf_counter()
    first, patches, gap, border, epoch = 0.0, 0, 0.0, 0.0, 0
    for batch in batches:
        now = time.perf_counter()
        newest = int(batch.epochs[-1])
        if not patches:
            first = now - start
        else:
            gap = max(gap, now - last)
            border = max(border, now - last) if newest > epoch else border
        epoch, last, patches = newest, now, patches + len(batch)
    return Rate(patches, time.perf_counter() - start, first, gap, border)


def bare_batches(store: PatchStore, plan: Plan) -> Iterator[Batch]:
    """The ceiling: one thread reads memory-mapped row groups and assembles the same batches in between; no checksum is
    compared."""
    wanted, lanes = Wanted.of(store), plan.lanes_of(0, 1)
    files = [pq.ParquetFile(store.folder.open(shard.path)) for shard in store.manifest.shards]
    shards, first = store.blocks.shard, store.blocks.first

    def windows() -> Iterator[Rows]:
        for window in plan.windows(lanes, 0, plan.count(lanes)):
            groups = zip(shards[window.blocks], first[window.blocks] + window.slots, strict=True)
            tables = [files[shard].read_row_group(group, columns=wanted.columns) for shard, group in groups]
            yield Rows(window, pa.concat_tables(tables))

    return in_lockstep(windows(), plan, lanes, 0, _Unchecked(store, wanted, plan.seed))


class _Unchecked(Assembler):
    def _cell(self, loaded: Rows, row: int, name: str) -> np.ndarray | None:
        return loaded.cells[name][row]


# --- two Train workers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """Two workers of a TorchTrainer, each reading its own lanes through Ray: their sum, and the slower one's first batch
    of its first stream and of its second."""

    rate: Rate
    cold: float
    warm: float


def two_workers(store: PatchStore, plan: Plan) -> Trained:
    """Fit a TorchTrainer whose workers do nothing but receive batches."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from cromss.rendezvous import Rendezvous

    with tempfile.TemporaryDirectory(prefix="cromss-bench-train-") as folder:
        TorchTrainer(
            _receive,
            torch_config=Rendezvous(),
            train_loop_config={"store": str(store.path), "plan": plan.arguments, "out": folder},
            scaling_config=ScalingConfig(num_workers=WORKERS, resources_per_worker={"CPU": WORKER_CPUS}),
            run_config=RunConfig(name=unique_name("bench"), storage_path=folder),
        ).fit()
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(WORKERS)]
    rates = [Rate(**one["rate"]) for one in found]
    together = Rate(
        patches=sum(rate.patches for rate in rates),
        seconds=max(one["end"] for one in found) - min(one["begin"] for one in found),
        **{name: max(getattr(rate, name) for rate in rates) for name in ("first", "gap", "border")},
    )
    return Trained(together, max(one["cold"] for one in found), together.first)


def _receive(job: dict[str, Any]) -> None:
    """In a worker: a first batch from a stream that is given up, then a whole stream."""
    import ray.train

    torch.set_num_threads(1)
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    store = PatchStore.open(job["store"])
    plan, reader = Plan(store.blocks, **job["plan"]), RayReader(cpus=READER_CPUS)
    begin = time.perf_counter()
    once = open_batches(store, plan, reader=reader, rank=rank, world=world)
    next(once)
    cold = time.perf_counter() - begin
    once.close()
    torch.distributed.barrier()
    begin = time.time()
    rate = timed(open_batches(store, plan, reader=reader, rank=rank, world=world))
    found = {"cold": cold, "begin": begin, "end": time.time(), "rate": asdict(rate)}
    (Path(job["out"]) / f"{rank}.json").write_text(json.dumps(found))


# --- what people do without a store -----------------------------------------------------------------------------------


class GeoTiffFolder(torch.utils.data.Dataset):
    """A plain map-style dataset over the SSL4EO-S12 v1.0 tree: 13 + 2 + 1 files an item, coarse bands resampled to 10 m;
    every season of every place, over and over up to `items`. Nothing is checked."""

    def __init__(self, root: Path, items: int):
        source = Ssl4eo(path=root)
        self.scenes = [handle for place in source.locations() for _, handle in source.acquisitions(place)]
        self.items = items

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        radar, optical, label = self.scenes[item % len(self.scenes)]
        with rasterio.open(optical / "B2.tif") as finest:
            size = finest.shape
        s1 = [_band(radar / f"{band}.tif", size) for band in SENTINEL1.bands]
        s2 = [_band(optical / f"{band}.tif", size) for band in SENTINEL2.bands]
        return {
            "s1": torch.from_numpy(np.stack(s1)),
            "s2": torch.from_numpy(np.stack(s2)),
            "label": torch.from_numpy(_band(label, size)),
        }


def _band(path: Path, size: tuple[int, int]) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1, out_shape=size, resampling=Resampling.bilinear)


def plain_loader(root: Path, batch_size: int, processes: int, batches: int = 8) -> Rate:
    """A torch DataLoader over the tree; its processes have started before the clock does."""
    loader = torch.utils.data.DataLoader(
        GeoTiffFolder(root, batch_size * batches),
        batch_size=batch_size,
        shuffle=True,
        num_workers=processes,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    sum(1 for _ in zip(loader, range(processes)))  # noqa: B905 - their imports, not the measurement
    start = last = time.perf_counter()
    first, patches, gap = 0.0, 0, 0.0
    for batch in loader:
        now = time.perf_counter()
        first, gap = (first or now - start), (max(gap, now - last) if patches else 0.0)
        last, patches = now, patches + len(batch["label"])
    return Rate(patches, time.perf_counter() - start, first, gap)


# --- what reading does to the step ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Jitter:
    """Seconds of one fixed step on one CPU: median and 95th percentile alone, and while a reader streams beside it."""

    alone: tuple[float, float]
    reading: tuple[float, float]

    @property
    def ratios(self) -> tuple[float, float]:
        """Of the medians, of the 95th percentiles."""
        return self.reading[0] / self.alone[0], self.reading[1] / self.alone[1]


def jitter(store: PatchStore, plan: Plan, steps: int = 100) -> Jitter:
    """A convolution forwards and backwards, alone and between the batches of the direct reader, in turns. Waiting for a
    batch is not part of a step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    step = _step()
    times: dict[bool, list[float]] = {False: [], True: []}
    batches = _endless(store, plan)
    try:
        next(batches)
        for _ in range(steps // 10):
            for reading in (False, True):
                if not reading:
                    time.sleep(0.3)  # until the reader's threads have read ahead and rest
                for _ in range(10):
                    if reading:
                        next(batches)
                    start = time.perf_counter()
                    step()
                    times[reading].append(time.perf_counter() - start)
    finally:
        batches.close()
        torch.set_num_threads(threads)
    return Jitter(*(tuple(np.percentile(times[reading], (50, 95)).tolist()) for reading in (False, True)))


def _step() -> Any:
    images = torch.rand(4, 15, 96, 96)
    layers = torch.nn.Sequential(torch.nn.Conv2d(15, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 3))

    def step() -> None:
        layers(images).square().mean().backward()

    step()
    return step


def _endless(store: PatchStore, plan: Plan) -> Iterator[Batch]:
    while True:
        yield from open_batches(store, plan, reader=DirectReader())


def bytes_of(store: PatchStore, plan: Plan) -> tuple[float, float]:
    """(bytes that a direct stream reads in an epoch, on average over the run; bytes of the same columns of all seasons)."""
    lanes, columns = plan.lanes_of(0, 1), set(Wanted.of(store).columns)
    footers = [pq.read_metadata(store.folder.open(shard.path)) for shard in store.manifest.shards]

    def size(block: int, slots: Sequence[int]) -> int:
        first, footer = int(store.blocks.first[block]), footers[store.blocks.shard[block]]
        groups = [footer.row_group(first + int(slot)) for slot in slots]
        parts = [group.column(i) for group in groups for i in range(group.num_columns)]
        return sum(part.total_compressed_size for part in parts if part.path_in_schema in columns)

    read = sum(
        size(block, [slot])
        for window in plan.windows(lanes, 0, plan.count(lanes))
        for block, slot in zip(window.blocks, window.slots, strict=True)
    )
    return read / plan.epochs, sum(size(block, range(store.blocks.n[block])) for block in plan.chosen)
