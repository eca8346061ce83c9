"""How good is the estimate? It is made, then the run is done, by the verbs a user would type; the two side by side."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from cromss.config import PRESETS, assignments, overlay, resolve
from cromss.costs.estimate import Estimate, of_run
from cromss.data.store import PatchStore
from cromss.settings import suggest

PLACES = ("--places", "320", "--train", "64", "--test", "128")  # the synthetic Earth of `cromss demo`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench estimate`."""
    parser.add_argument("--data", metavar="STORE", help="pretraining store (default: a synthetic one, written first)")
    parser.add_argument("--downstream", metavar="STORE", help="downstream store")
    parser.add_argument("--preset", default="demo", help="of the run (default: %(default)s)")
    parser.add_argument("--set", dest="sets", metavar="KEY=VALUE", action="append", default=[], help="as of a run")
    parser.add_argument("--seconds", type=float, default=30, help="for the estimate to measure (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep stores and run there (default: nothing is kept)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Part:
    """Seconds that a part was expected to take, and took."""

    name: str
    estimated: float
    measured: float

    @property
    def ratio(self) -> float:
        """Above 1: it took less than expected."""
        return self.estimated / max(self.measured, 1e-9)


def run(options: argparse.Namespace) -> int:
    """Estimate, run, compare. Raises ValueError for options that cannot be, and for a run that fails."""
    if bool(options.data) != bool(options.downstream):
        raise ValueError("--data and --downstream go together: give both, or neither")
    if options.preset not in PRESETS:
        raise ValueError(f"--preset {options.preset}: unknown{suggest(options.preset, PRESETS)}")
    if options.seconds <= 0:
        raise ValueError(f"--seconds={options.seconds:g}: must be above 0")
    config = resolve(overlay(PRESETS[options.preset], assignments(options.sets)))
    folder = options.out or Path(tempfile.mkdtemp(prefix="cromss-bench-"))
    try:
        data, downstream = _stores(options, folder)
        loads = [os.getloadavg()[0]]
        began = time.monotonic()
        estimate = of_run(
            config, PatchStore.open(data), PatchStore.open(downstream), seconds=options.seconds,
            together=os.cpu_count() or 1,
        )  # fmt: skip
        took = time.monotonic() - began
        print("\n".join(estimate.lines()), flush=True)
        loads.append(os.getloadavg()[0])
        parts = compare(estimate, *_run(options, folder, data, downstream))
        loads.append(os.getloadavg()[0])
    finally:
        if options.out is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\nthe estimate took {took:.0f} s; {os.cpu_count()} CPUs, load {', '.join(f'{load:.1f}' for load in loads)} "
          f"(before, between, after)\n{table(parts)}")  # fmt: skip
    if options.json:
        found = {"load": loads, "estimate_seconds": took, "estimate": estimate.as_json(), "parts": [
            asdict(part) | {"ratio": part.ratio} for part in parts]}  # fmt: skip
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def compare(estimate: Estimate, pretraining: float, downstream: float, whole: float) -> list[Part]:
    """The estimate's rows beside what the run's own records say, in seconds; the rest of `whole` is processes and Ray."""
    expected = {row.name: row.seconds for row in estimate.rows}
    rest = "start: processes, Ray, MLflow"
    return [
        Part("pretraining", expected["pretraining"], pretraining),
        Part("downstream runs", expected["downstream runs"], downstream),
        Part(rest, expected[rest], whole - pretraining - downstream),
        Part("run", expected["run"], whole),
    ]


def table(parts: list[Part]) -> str:
    """For people."""
    width = max(len(part.name) for part in parts)
    lines = [f"{'':{width}}  {'estimated':>10}  {'measured':>10}  {'ratio':>6}"]
    lines += [
        f"{part.name:{width}}  {part.estimated:>8.1f} s  {part.measured:>8.1f} s  {part.ratio:>6.2f}" for part in parts
    ]
    lines.append(
        "what a process imports late is counted as start in the estimate, and by the run as the part that needed it"
    )
    return "\n".join(lines)


def _stores(options: argparse.Namespace, folder: Path) -> tuple[str, str]:
    if options.data:
        return options.data, options.downstream
    stores = [str(folder / "pretraining"), str(folder / "downstream")]
    for store, more in zip(stores, ((), ("--downstream",)), strict=True):
        if not (Path(store) / "manifest.json").exists():
            _verb("ingest", "synthetic", store, *PLACES, *more)
    return stores[0], stores[1]


def _run(options: argparse.Namespace, folder: Path, data: str, downstream: str) -> tuple[float, float, float]:
    """(seconds of the pretraining, of the downstream runs, of both commands from start to end)."""
    sets = ["--preset", options.preset, *(word for item in options.sets for word in ("--set", item))]
    run, judged = folder / f"run-{os.getpid()}", folder / f"judged-{os.getpid()}"
    began = time.monotonic()
    _verb("pretrain", *sets, "--data", data, "--downstream", downstream, "--out", str(run))
    _verb("transfer", *sets, "--encoder", str(run), "--downstream", downstream, "--out", str(judged))
    whole = time.monotonic() - began
    pretraining = json.loads((run / "pretraining.json").read_text())["seconds"]
    results = [json.loads(path.read_text())["seconds"] for path in (judged / "transfer").glob("*/result.json")]
    together = min(len(results), os.cpu_count() or 1)
    return pretraining, sum(results) / together, whole


def _verb(*words: str) -> None:
    """Raises ValueError with the last words of a command that fails."""
    done = subprocess.run([sys.executable, "-m", f"cromss.{words[0]}", *words[1:]], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["without a word"]
        raise ValueError(f"cromss {words[0]} failed: {last[0]}")
