"""What a plan costs: memory, and the time to its first row group, for a store of any size. Nothing is read."""

import argparse
import resource
import time

import numpy as np

from cromss.data.plan import Plan
from cromss.data.store import Blocks
from cromss.data.writer import PLACES_PER_BLOCK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench plan`."""
    parser.add_argument(
        "--patches", type=float, default=100e6, help="patches of the imagined store (default: %(default)g)"
    )
    parser.add_argument("--seasons", type=int, default=4, help="acquisitions of each place (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=100, help="epochs of the run (default: %(default)s)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    before = _resident()
    blocks = imagined(int(options.patches), options.seasons)
    began = time.perf_counter()
    plan = Plan(blocks, seed=0, epochs=options.epochs, batch_size=512, exclude_folds=(0,))
    lanes = plan.lanes_of(0, 1)
    next(plan.windows(lanes, 0, plan.count(lanes)))
    first = time.perf_counter() - began
    print(
        f"{options.patches:,.0f} patches in {len(blocks):,} blocks of {options.seasons} row groups, {plan.steps:,} steps"
    )
    print(f"first row group after {first:.2f} s, {_resident() - before:,.0f} MiB")
    began = time.perf_counter()
    plan.first_window(lanes, plan.steps // 2)
    print(f"resume in the middle after {time.perf_counter() - began:.2f} s")
    for epoch in range(1, min(4, options.epochs)):
        began = time.perf_counter()
        next(plan.windows(lanes, plan.count(lanes, epoch), plan.count(lanes)))
        print(f"epoch {epoch + 1} begins after {time.perf_counter() - began:.2f} s, {_resident() - before:,.0f} MiB")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"at most {peak - before:,.0f} MiB above the {before:,.0f} MiB that Python and its libraries take")
    return 0


def imagined(patches: int, seasons: int) -> Blocks:
    """The block table of a store of so many patches, in shards of four blocks and 100 folds."""
    count = max(100, patches // PLACES_PER_BLOCK // seasons)
    number = np.arange(count, dtype=np.int32)
    return Blocks(
        shard=number // 4,
        first=number % 4 * seasons,
        n=np.full(count, seasons, np.int32),
        rows=np.full(count, PLACES_PER_BLOCK, np.int32),
        split=np.full(count, "train"),
        fold=(number.astype(np.int64) * 100 // count).astype(np.int32),
    )


def _resident() -> float:
    """MiB of this process."""
    import psutil

    return psutil.Process().memory_info().rss / 2**20
