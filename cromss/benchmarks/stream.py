"""How fast patches reach the training loop, against bare pyarrow, and what converting GeoTIFFs buys."""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cromss.benchmarks.material import write_random_store, write_random_tree
from cromss.benchmarks.readers import (
    READER_CPUS,
    WORKER_CPUS,
    WORKERS,
    Rate,
    bare_batches,
    bytes_of,
    jitter,
    plain_loader,
    timed,
    two_workers,
)
from cromss.data.ingestion import Ingest
from cromss.data.plan import Plan
from cromss.data.sources.ssl4eo import Ssl4eo
from cromss.data.store import PatchStore
from cromss.data.stream import DirectReader, RayReader, open_batches

RUNS = 7  # of each reader, in turns; the table has the fastest, which the rest of the machine disturbed least
PARTS = ("ray", "train", "live", "loader", "jitter")
PROCESSES = 2  # of the DataLoader; the direct reader has as many threads
LIVE_BATCH, LIVE_PATCHES = 32, 256  # of a stream that decodes: it takes seconds for more


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench stream`."""
    parser.add_argument("--store", help="a patch store (default: random pixels in a temporary one)")
    parser.add_argument("--tree", type=Path, help="a SSL4EO-S12 v1.0 tree (default: a generated one)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of one run (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="patches of a batch (default: %(default)s)")
    parser.add_argument("--split", default="train")
    parser.add_argument("--skip", type=_parts, default=(), metavar="PART,...", help=f"leave out: {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the rates there")
    parser.set_defaults(run=run)


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(filter(None, text.split(",")))
    if unknown := [part for part in parts if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: leave out any of {', '.join(PARTS)}")
    return parts


def run(options: argparse.Namespace) -> int:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory(prefix="cromss-bench-") as folder:
        if options.store is not None:
            store = PatchStore.open(options.store)
            if store.manifest.kind == "live":
                raise ValueError(f"--store {options.store}: is live; name a converted one, and its tree with --tree")
        else:
            print("writing 512 patches of random pixels, 128 places x 4 seasons, 264 x 264 pixels ...", flush=True)
            store = write_random_store(Path(folder) / "store")
        tree = options.tree
        if tree is None and not {"live", "loader"} <= set(options.skip):
            print("writing 128 of them as 2,048 GeoTIFFs ...", flush=True)
            tree = write_random_tree(Path(folder) / "tree")
        found = measure(store, tree, Path(folder), options)
    print(report(found))
    found["headline"] = ", ".join(f"{name} {row['patches/s']:,.0f} patches/s" for name, row in found["rows"].items())
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    if options.png:
        _draw(found, options.png)
    return 0


def measure(store: PatchStore, tree: Path | None, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All numbers, as plain values."""
    plan = Plan(store.blocks, seed=0, epochs=options.epochs, batch_size=options.batch_size, split=options.split)
    parts, first, readers = set(PARTS) - set(options.skip), {}, {}
    if {"ray", "train"} & parts:
        from cromss.ray_session import connect

        connect()
    if "ray" in parts:
        first["driver, cold"] = timed(_head(open_batches(store, plan, reader=RayReader()))).first
    readers["bare pyarrow"] = lambda: timed(bare_batches(store, plan))
    readers["direct reader"] = lambda: timed(open_batches(store, plan, reader=DirectReader()))
    if "ray" in parts:
        readers["Ray reader"] = lambda: timed(open_batches(store, plan, reader=RayReader()))
    readers["bare pyarrow"]()  # the page cache holds the store from now on
    runs = _in_turns(readers, RUNS)
    if "ray" in parts:
        first["driver, warm"] = min(rate.first for rate in runs["Ray reader"])
    if "train" in parts:
        trained = [two_workers(store, plan) for _ in range(3)]
        runs["Ray reader, two Train workers"] = [one.rate for one in trained]
        first["Train worker, cold"] = min(one.cold for one in trained)
        first["Train worker, warm"] = min(one.warm for one in trained)
    runs |= _decoded(tree, folder, parts, options.batch_size)
    read, whole = bytes_of(store, plan)
    bare = max(rate.per_second for rate in runs["bare pyarrow"])
    size = sum(shard.bytes for shard in store.manifest.shards) / sum(store.manifest.patches.values())
    found: dict[str, Any] = {
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "blocks": len(plan.chosen),
        "patches an epoch": plan.rows,
        "epochs": plan.epochs,
        "batch": plan.batch_size,
        "patch bytes": size,
        "rows": {name: _row(found, bare) for name, found in runs.items()},
        "first batch": first,
        "epoch bytes": {"read": read, "all seasons": whole, "times fewer": whole / read},
    }
    if "jitter" in parts:
        step = jitter(store, plan)
        found["step"] = asdict(step) | {"ratios": step.ratios}
    return found


def _decoded(tree: Path | None, folder: Path, parts: set[str], batch_size: int) -> dict[str, list[Rate]]:
    """The streams that decode GeoTIFFs while they read."""
    readers: dict[str, Callable[[], Rate]] = {}
    if "live" in parts:
        from cromss.data.live_index import index

        index(Ssl4eo(path=tree), folder / "live", Ingest(folds=1))
        live = PatchStore.open(folder / "live")
        rows = int(live.blocks.rows.sum())
        plan = Plan(live.blocks, seed=0, epochs=max(1, LIVE_PATCHES // rows), batch_size=LIVE_BATCH, lanes=2, window=1)
        readers["GeoTIFF, direct reader"] = lambda: timed(open_batches(live, plan, reader=DirectReader()))
        if "ray" in parts:
            readers["GeoTIFF, Ray reader"] = lambda: timed(open_batches(live, plan, reader=RayReader()))
    if "loader" in parts:
        name = f"GeoTIFF, torch DataLoader ({PROCESSES} processes)"
        readers[name] = lambda: plain_loader(tree, min(batch_size, LIVE_BATCH), PROCESSES)
    return _in_turns(readers, 2)


def _in_turns(readers: dict[str, Callable[[], Rate]], runs: int) -> dict[str, list[Rate]]:
    found: dict[str, list[Rate]] = {name: [] for name in readers}
    for _ in range(runs):
        for name, measured in readers.items():
            found[name].append(measured())
    return found


def _head(batches: Any) -> Any:
    yield next(batches)
    batches.close()


def _row(runs: list[Rate], bare: float) -> dict[str, Any]:
    best = max(runs, key=lambda rate: rate.per_second)
    return asdict(best) | {
        "patches/s": best.per_second,
        "of bare": best.per_second / bare,
        "runs": [rate.per_second for rate in runs],
    }


def report(found: dict[str, Any]) -> str:
    """The numbers as lines for people."""
    width = max(map(len, found["rows"]))
    lines = [
        f"{found['blocks']} blocks, {found['patches an epoch']} patches an epoch, {found['epochs']} epochs in one run, "
        f"batches of {found['batch']}; {found['cpus']} CPUs, load {found['load']:.1f}",
        "",
        f"{'':{width}} {'patches/s':>10} {'of bare':>8} {'MB/s':>7} {'first batch':>12} {'longest gap':>12} "
        f"{'at a border':>12}",
    ]
    for name, row in found["rows"].items():
        rate = row["patches/s"] * found["patch bytes"] / 1e6
        lines.append(
            f"{name:{width}} {row['patches/s']:10,.0f} {row['of bare']:8.1%} {rate:7,.0f} {row['first']:10.2f} s "
            f"{row['gap'] * 1e3:9,.0f} ms {row['border'] * 1e3:9,.0f} ms"
        )
    lines += ["", "gap: the longest wait for a batch after the first; border: for one that begins an epoch"]
    if "Ray reader, two Train workers" in found["rows"]:
        lines.append(
            f"Train workers: {WORKER_CPUS:g} CPU each, readers {READER_CPUS:g} CPU each, {WORKERS} of both; summed"
        )
    rows = found["rows"]
    for name, row in rows.items():
        if name.startswith("GeoTIFF"):
            faster = rows["direct reader"]["patches/s"] / row["patches/s"]
            lines.append(f"a converted store, read directly, is {faster:.0f} times as fast as {name}")
    if found["first batch"]:
        lines.append("first batch: " + ", ".join(f"{name} {took:.2f} s" for name, took in found["first batch"].items()))
    read = found["epoch bytes"]
    lines.append(
        f"an epoch reads {read['read'] / 1e6:,.0f} MB, all seasons are {read['all seasons'] / 1e6:,.0f} MB: "
        f"{read['times fewer']:.2f} times fewer"
    )
    if step := found.get("step"):
        (median, late), (median_beside, late_beside) = step["alone"], step["reading"]
        lines.append(
            f"a step of {median * 1e3:.1f} ms (95 %: {late * 1e3:.1f}) takes {median_beside * 1e3:.1f} ms (95 %: "
            f"{late_beside * 1e3:.1f}) beside the direct reader: x {step['ratios'][0]:.2f} (95 %: x {step['ratios'][1]:.2f})"
        )
    return "\n".join(lines)


def _draw(found: dict[str, Any], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    from cromss.plot import FAINT, PALETTE, STYLE

    rows = found["rows"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 0.6 + 0.4 * len(rows)), layout="constrained")
        axes = figure.subplots()
        colours = [PALETTE[1] if name.startswith("GeoTIFF") else PALETTE[0] for name in rows]
        bars = axes.barh(list(rows), [row["patches/s"] for row in rows.values()], color=colours)
        labels = [f"{row['patches/s']:,.0f}  ({row['of bare']:.0%})" for row in rows.values()]
        axes.bar_label(bars, labels, padding=4, color=FAINT)
        axes.set(xscale="log", xlabel="patches a second", title="From the disk to the training loop")
        axes.set_xlim(left=1, right=axes.get_xlim()[1] * 4)
        axes.invert_yaxis()
        figure.savefig(path, dpi=130)
