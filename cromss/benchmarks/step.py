"""A training step of the paper's network beside the authors' recipe: time, memory, traffic, part by part."""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from cromss.benchmarks.apart import alone, batches_table, measure_batches, measure_switches, switches_table
from cromss.benchmarks.meters import Clock, PeakMemory, Tally, Unmetered, count_gflop
from cromss.benchmarks.objectives import Objectives
from cromss.benchmarks.sides import MARGIN, SIDES, Side, inputs_of, make_side, random_batch, step
from cromss.benchmarks.step_report import WARM_UP, Alone, Report, Timed, table
from cromss.config import PRESETS, RunConfig, resolve
from cromss.costs.hardware import here, measured
from cromss.data.patch import Batch
from cromss.landcover import DYNAMIC_WORLD
from cromss.settings import assignments, overlay
from cromss.training.microbatch import choose
from cromss.training.pretraining import build
from cromss.training.state import device_precision
from cromss.training.step import Step
from cromss.training.uploads import uploaded

# What the authors' code computes: both sides do, so that what differs is how.
SAME_MATHS = {
    "per_class": True,
    "consistency": {"kind": "cross_entropy"},
    "smoothing": {"kind": "none"},
    "method": {"kind": "cromss"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench step`."""
    parser.add_argument("--encoder", help="backbone of both U-Nets (default: the preset's, resnet50 in the paper)")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side after cropping (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="S1+S2 pairs of a step (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="torch threads on a CPU (default: torch's choice)")
    parser.add_argument("--steps", type=int, default=5, help="measured steps (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--fusion", choices=("single", "middle", "late"), help="how the modalities share a network")
    parser.add_argument(
        "--fields-of", choices=tuple(PRESETS), default="paper", metavar="PRESET",
        help=f"network and optimizer of {', '.join(PRESETS)} (default: %(default)s); the objective is the recipe's",
    )  # fmt: skip
    parser.add_argument("--set", dest="sets", metavar="KEY=VALUE", action="append", default=[], help="of our side")
    parser.add_argument("--switches", action="store_true", help="measure each switch of the configuration, too")
    parser.add_argument(
        "--batches", type=_numbers, metavar="N,N,...", help="measure these numbers of pairs, too: 32,64,128,256"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here, too")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the roofline here")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # one alone, for a process of its own
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print the tables. Raises ValueError for sizes, devices and encoders that cannot be."""
    for name in ("size", "batch", "threads", "steps"):
        if (number := getattr(options, name)) is not None and number < 1:
            raise ValueError(f"--{name}={number}: must be 1 or more")
    for name in ("json", "png"):
        if (file := getattr(options, name)) and not file.parent.is_dir():
            raise ValueError(f"--{name}={file}: there is no folder {file.parent}; create it first")
    device = _device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    config = config_of(options)
    if options.side:
        print(json.dumps(asdict(measure(config, options.batch, options.steps, device, options.side))))
        return 0
    return _run_both(options, config, device)


def _run_both(options: argparse.Namespace, config: RunConfig, device: torch.device) -> int:
    size = config.data.augment.crop
    inputs = inputs_of(config)
    channels = {name: len(bands) for name, bands in inputs.bands.items()}
    gflop = count_gflop(build(config, inputs, len(DYNAMIC_WORLD)), channels, options.batch, size)
    print("peak memory: each side in a process of its own ...", flush=True)
    memory = {side: alone(options, side, steps=1) for side in SIDES}
    report = compare(config, options.batch, options.steps, device, gflop, memory)
    print(f"\n{table(report)}", flush=True)
    found: dict[str, Any] = asdict(report) | {"ratios": report.ratios, "headline": report.headline}
    for name, side in report.sides.items():
        found["sides"][name] |= {"step_seconds": side.step_seconds, "objective_share": side.objective_share}
    if options.batches:
        found["batches"] = measure_batches(options, gflop / options.batch, report.hardware)
        print(f"\n{batches_table(found['batches'])}", flush=True)
    if options.switches:
        found["switches"] = measure_switches(options, config, device)
        print(f"\n{switches_table(found['switches'])}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if device.type == "cpu":
        from cromss.benchmarks.roofline import computed

        print(f"\n{computed(config, options.batch)}")
    if options.png:
        from cromss.benchmarks.roofline import draw

        draw(report, options.png)
    print(f"\n{report.headline}")
    return 0


def config_of(options: argparse.Namespace) -> RunConfig:
    """The run whose step is measured. Raises ValueError with a line per mistake."""
    asked: dict[str, Any] = {"data": {"augment": {"crop": options.size}}, "objective": SAME_MATHS}
    if options.encoder:
        asked = overlay(asked, {"model": {"encoder": options.encoder}})
    if options.fusion:
        asked = overlay(asked, {"model": {"fusion": {"kind": options.fusion}}})
    return resolve(PRESETS[options.fields_of], asked, assignments(options.sets))


# --- one side alone ---------------------------------------------------------------------------------------------------


def measure(config: RunConfig, pairs: int, steps: int, device: torch.device, side: str = "ours") -> Alone:
    """Train on random pixels for `WARM_UP + steps` steps and time the last ones, whole, as training takes them.

    Raises ValueError as the network does.
    """
    memory = PeakMemory(device)
    with memory:
        one = make_side(side, config, device)
        one.training.network.train()
        advance = _advance(one, _batch(config, pairs), device, side)
        for _ in range(WARM_UP):
            advance()
        seconds = _seconds_of(advance, steps, device)
    return Alone(side, _precision(one.config, device), seconds, memory.bytes, memory.means)


def _advance(side: Side, batch: Batch, device: torch.device, name: str) -> Callable[[], object]:
    """One step of a side: ours as `training.loop.fit` takes it, uploads included."""
    if name == "recipe":
        return lambda: step(side, batch, device, Unmetered())
    config, inputs = side.config, inputs_of(side.config)
    channels = {modality: len(bands) for modality, bands in inputs.bands.items()}
    size = (config.data.augment.crop,) * 2
    pieces = choose(config, side.training.network, channels, len(batch), size, device)
    whole = Step(side.training, config, inputs, len(DYNAMIC_WORLD), device, pieces)
    batches = uploaded(repeat(batch), device, config.scaling.double_buffer)
    return lambda: whole(next(batches), config.optim.epochs - 1)  # the ramps have ended


def _seconds_of(advance: Callable[[], object], steps: int, device: torch.device) -> float:
    """Of a step: the fastest; on a GPU, where a step may still be at work when the next is begun, the mean."""
    each = []
    for number in range(steps):
        if device.type == "cuda" and number == 0:
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        advance()
        if device.type == "cuda" and number == steps - 1:
            torch.cuda.synchronize(device)
        each.append(time.perf_counter() - began)
    return mean(each) if device.type == "cuda" else min(each)


# --- both in turns ----------------------------------------------------------------------------------------------------


def compare(
    config: RunConfig, pairs: int, steps: int, device: torch.device, gflop: float, memory: dict[str, dict[str, Any]]
) -> Report:
    """Both sides in one process, step by step in turns, so that whatever disturbs the machine disturbs both.

    gflop   of a step (`count_gflop`)
    memory  side -> what it held in a process of its own, as `measure` reports it
    """
    known = here() if device.type == "cuda" else None
    reached = None if known else measured(device)
    sides = {name: make_side(name, config, device) for name in SIDES}
    batch = _batch(config, pairs)
    tallies, seen = {name: Tally() for name in SIDES}, {}
    for name, side in sides.items():
        side.training.network.train()
        seen[name] = step(side, batch, device, tallies[name])
    objectives = Objectives(sides, seen, device)
    for _ in range(WARM_UP):
        for side in sides.values():
            step(side, batch, device, Clock(device))
    timed: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    for number in range(steps):
        for name in SIDES if number % 2 else SIDES[::-1]:  # neither always finds the memory as the other left it
            step(sides[name], batch, device, clock := Clock(device))
            timed[name].append(clock.seconds)
        objectives.time()
    hardware = known or reached.better(measured(device))  # before and after: others may be at work
    return Report(
        fusion=config.model.fusion.kind,
        encoder=config.model.encoder,
        channels={name: len(bands) for name, bands in batch.bands.items()},
        classes=len(DYNAMIC_WORLD),
        batch=pairs,
        size=config.data.augment.crop,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0],
        torch=torch.__version__,
        steps=steps,
        compile=config.scaling.compile,
        hardware=hardware,
        gflop=gflop,
        sides={name: Timed.of(_precision(side.config, device), timed[name]) for name, side in sides.items()},
        moved={name: tally.bytes for name, tally in tallies.items()},
        losses={name: float(step.loss) for name, step in seen.items()},
        objectives=objectives.done(),
        memory_bytes={name: found["memory_bytes"] for name, found in memory.items()},
        memory_means=memory["ours"]["memory_means"],
    )


def _batch(config: RunConfig, pairs: int) -> Batch:
    return random_batch(inputs_of(config).bands, len(DYNAMIC_WORLD), pairs, config.data.augment.crop + MARGIN)


def _precision(config: RunConfig, device: torch.device) -> str:
    return str(device_precision(device, config.optim.precision)).removeprefix("torch.")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers of pairs, comma-separated, such as 32,64,128,256")
    return numbers


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda: torch finds no GPU here; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
