"""What a plan costs: memory, and the time to its first row group, for a store of any size. Nothing is read."""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the memory there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    found = measure(int(options.patches), options.seasons, options.epochs)
    print(report(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.png:
        _draw(found, options.png)
    return 0


def measure(patches: int, seasons: int, epochs: int) -> dict[str, Any]:
    """All numbers, as plain values: seconds, and MiB above what the process held before."""
    before = _resident()
    blocks = imagined(patches, seasons)
    began = time.perf_counter()
    plan = Plan(blocks, seed=0, epochs=epochs, batch_size=512, exclude_folds=(0,))
    lanes = plan.lanes_of(0, 1)
    next(plan.windows(lanes, 0, plan.count(lanes)))
    begins = [{"epoch": 1, "seconds": time.perf_counter() - began, "MiB": _resident() - before}]
    began = time.perf_counter()
    plan.first_window(lanes, plan.steps // 2)
    resumed = time.perf_counter() - began
    for epoch in range(1, min(4, epochs)):
        began = time.perf_counter()
        next(plan.windows(lanes, plan.count(lanes, epoch), plan.count(lanes)))
        row = {"epoch": epoch + 1, "seconds": time.perf_counter() - began, "MiB": _resident() - before}
        begins.append(row)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {
        "patches": patches,
        "blocks": len(blocks),
        "seasons": seasons,
        "steps": plan.steps,
        "epochs": begins,
        "resume seconds": resumed,
        "peak MiB": peak - before,
        "before MiB": before,
    }
    return found | {
        "headline": f"{epochs} epochs over {patches:,} patches: at most {found['peak MiB']:,.0f} MiB, first row group after "
        f"{begins[0]['seconds']:.2f} s"
    }


def report(found: dict[str, Any]) -> str:
    """The numbers as lines for people."""
    first, *later = found["epochs"]
    return "\n".join(
        [
            f"{found['patches']:,} patches in {found['blocks']:,} blocks of {found['seasons']} row groups, "
            f"{found['steps']:,} steps",
            f"first row group after {first['seconds']:.2f} s, {first['MiB']:,.0f} MiB",
            f"resume in the middle after {found['resume seconds']:.2f} s",
            *(f"epoch {row['epoch']} begins after {row['seconds']:.2f} s, {row['MiB']:,.0f} MiB" for row in later),
            f"at most {found['peak MiB']:,.0f} MiB above the {found['before MiB']:,.0f} MiB that Python and its libraries take",
        ]
    )


def _draw(found: dict[str, Any], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    from cromss.plot import PALETTE, STYLE

    epochs = [str(row["epoch"]) for row in found["epochs"]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 2.6), layout="constrained")
        figure.suptitle(f"The order of {found['patches']:,} patches", x=0.01, ha="left", size=10, weight="bold")
        memory, begin = figure.subplots(1, 2)
        memory.bar_label(
            memory.bar(epochs, [row["MiB"] for row in found["epochs"]], 0.5, color=PALETTE[0]), fmt="{:,.0f}"
        )
        memory.set(xlabel="epoch that begins", ylabel="MiB held")
        begin.bar_label(
            begin.bar(epochs, [row["seconds"] for row in found["epochs"]], 0.5, color=PALETTE[2]), fmt="{:.3f}"
        )
        begin.set(xlabel="epoch that begins", ylabel="seconds to its first row group")
        figure.savefig(path, dpi=130)


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
