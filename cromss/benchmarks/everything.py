"""Every measurement, one after the other, each in a process of its own with numbers small enough for a laptop."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# The options of each. What they leave open is the measurement's own default.
SMALL = {
    "step": ("--encoder", "resnet18", "--size", "128", "--batch", "4", "--steps", "3"),
    "stream": ("--epochs", "2"),
    "plan": ("--patches", "10e6"),
    "sweep": ("--trials", "104"),
    "scaling": ("--size", "64", "--steps", "3"),
    "predict": ("--size", "640", "--encoder", "resnet18"),
    "estimate": (),
}
WITHOUT_PICTURE = ("estimate",)


@dataclass(frozen=True)
class Measurement:
    """A command and the files that it must leave; the first is a JSON, whose `headline`, if any, is the result in a line."""

    name: str
    command: tuple[str, ...]
    files: tuple[Path, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench all`."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="receives a JSON and a picture of each")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run them all; 1 if any failed."""
    options.out.mkdir(parents=True, exist_ok=True)
    return run_all([measurement(name, options.out) for name in SMALL])


def measurement(name: str, out: Path) -> Measurement:
    """One of `SMALL`, with its files in `out`."""
    files = {"--json": out / f"{name}.json"}
    if name not in WITHOUT_PICTURE:
        files["--png"] = out / f"{name}.png"
    words = [word for option, file in files.items() for word in (option, str(file))]
    command = (sys.executable, "-m", "cromss.bench", name, *SMALL[name], *words)
    return Measurement(name, command, tuple(files.values()))


@dataclass(frozen=True)
class Outcome:
    """How a measurement ended. `headline`: its result in a line, or how it failed."""

    name: str
    failed: bool
    seconds: float
    headline: str


def run_all(measurements: Sequence[Measurement]) -> int:
    """Run each, whatever became of those before; 1 if any failed."""
    outcomes = []
    for each in measurements:
        print(f"--- {each.name} ---", flush=True)
        outcomes.append(_run(each))
        print(flush=True)
    width = max(len(outcome.name) for outcome in outcomes)
    for outcome in outcomes:
        state = "FAILED" if outcome.failed else f"{outcome.seconds:.0f} s"
        print(f"{outcome.name:{width}}  {state:>7}  {outcome.headline}")
    failed = [outcome.name for outcome in outcomes if outcome.failed]
    without = f"; without {', '.join(failed)}" if failed else ""
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} measured{without}")
    return int(bool(failed))


def _run(one: Measurement) -> Outcome:
    for file in one.files:
        file.unlink(missing_ok=True)  # an earlier run's must not pass for this one's
    began = time.monotonic()
    status = subprocess.run(one.command).returncode
    seconds = time.monotonic() - began
    missing = [file.name for file in one.files if not file.exists()]
    if status or missing:
        why = f"exit status {status}" if status else f"wrote no {' and no '.join(missing)}"
        return Outcome(one.name, True, seconds, why)
    numbers = one.files[0]
    return Outcome(one.name, False, seconds, json.loads(numbers.read_text()).get("headline", f"see {numbers}"))
