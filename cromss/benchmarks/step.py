"""One training step of the paper's network, taken apart: time, memory, and what the objective costs of it."""

import argparse
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import psutil
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cromss.config import RunConfig, resolve
from cromss.data.augment import augment
from cromss.data.patch import Batch
from cromss.landcover import DYNAMIC_WORLD
from cromss.objective.crossmodal import CrossModalObjective
from cromss.sensors import sensor
from cromss.training.loop import Inputs, Training, autocast, device_precision
from cromss.training.pretraining import build, start

MARGIN = 8  # pixels by which a patch exceeds its crop: the paper cuts 256 out of 264
WARM_UP = 2  # steps before the clock runs: kernels are chosen, Adam's state is made
SAMPLING = 0.005  # seconds between two looks at the resident memory

INPUT, FORWARD, OBJECTIVE, OBJECTIVE_BACK, BACK, OPTIMIZER = PARTS = (
    "input: augment, scale",
    "network forward",
    "objective forward",
    "objective backward",
    "network backward",
    "optimizer",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench step`."""
    parser.add_argument("--encoder", default="resnet50", help="backbone of both U-Nets (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side after cropping (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="S1+S2 pairs of a step (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="torch threads on a CPU (default: torch's choice)")
    parser.add_argument("--steps", type=int, default=5, help="measured steps (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here, too")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print the table. Raises ValueError for sizes, devices and encoders that cannot be."""
    for name in ("size", "batch", "threads", "steps"):
        if (number := getattr(options, name)) is not None and number < 1:
            raise ValueError(f"--{name}={number}: must be 1 or more")
    if options.json and not options.json.parent.is_dir():
        raise ValueError(f"--json={options.json}: there is no folder {options.json.parent}; create it first")
    device = _device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    config = resolve({"model": {"encoder": options.encoder}, "data": {"augment": {"crop": options.size}}})
    report = measure(config, options.batch, options.steps, device)
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=2) + "\n")
    return 0


@dataclass(frozen=True)
class Report:
    """What a step takes. Seconds and shares are medians over the steps, so the parts need not add up exactly."""

    fusion: str
    encoder: str
    channels: dict[str, int]  # per modality
    classes: int
    batch: int  # pairs
    size: int  # pixels
    precision: str
    device: str
    threads: int
    load: float  # processes that wanted a CPU in the last minute: others', too
    torch: str
    steps: int
    seconds: dict[str, float]  # of each part
    shares: dict[str, float]  # of each part in its own step
    step_seconds: float
    objective_share: float  # forward, and backward as far as the logits
    gflop: float  # of a step: convolutions of network forward and backward, two operations per multiply-add
    memory_bytes: int
    memory_means: str

    @property
    def gflop_per_second(self) -> float:
        return self.gflop / self.step_seconds


def measure(config: RunConfig, pairs: int, steps: int, device: torch.device) -> Report:
    """Train on random pixels for `WARM_UP + steps` steps and time the last ones. Raises ValueError as the network does."""
    bands = {name: sensor(name).bands for name in config.model.fusion.modalities}
    inputs, classes = Inputs(bands, "uint8", config.model.scaling), len(DYNAMIC_WORLD)
    size = config.data.augment.crop
    memory = PeakMemory(device)
    with memory:
        training = start(config, build(config, inputs, classes).to(device), world=1)
        batch = random_batch(bands, classes, pairs, size + MARGIN)
        training.network.train()
        clocks = [Clock(device) for _ in range(WARM_UP + steps)]
        for clock in clocks:
            step(training, batch, config, inputs, device, clock)
    timed = [clock.seconds for clock in clocks[WARM_UP:]]
    totals = [sum(parts.values()) for parts in timed]
    objective = [parts[OBJECTIVE] + parts[OBJECTIVE_BACK] for parts in timed]
    channels = {name: len(names) for name, names in bands.items()}
    return Report(
        fusion=config.model.fusion.kind,
        encoder=config.model.encoder,
        channels=channels,
        classes=classes,
        batch=pairs,
        size=size,
        precision=str(device_precision(device, config.optim.precision)).removeprefix("torch."),
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0],
        torch=torch.__version__,
        steps=steps,
        seconds={part: median(parts[part] for parts in timed) for part in PARTS},
        shares={part: _median_ratio([parts[part] for parts in timed], totals) for part in PARTS},
        step_seconds=median(totals),
        objective_share=_median_ratio(objective, totals),
        gflop=count_gflop(training.module, channels, pairs, size),
        memory_bytes=memory.bytes,
        memory_means=memory.means,
    )


def step(
    training: Training, batch: Batch, config: RunConfig, inputs: Inputs, device: torch.device, clock: "Clock"
) -> None:
    """The step of `training.loop.fit` at the end of the ramps, the backward pass in two.

    The objective sees the logits as leaves, and the network goes on from their gradients: the same numbers, but the
    objective's part can be timed apart.
    """
    objective = config.objective
    with clock.part(INPUT):
        batch = augment(batch.to(device), config.data.augment)
        images = inputs(batch)
    with clock.part(FORWARD), autocast(device, config.optim.precision):
        logits = training.network(images)
    leaves = {name: z.detach().requires_grad_() for name, z in logits.items()}
    with clock.part(OBJECTIVE):
        outcome = CrossModalObjective(objective)(
            leaves, batch.labels, alpha=objective.alpha.end, gamma=objective.gamma.end, valid=batch.valid
        )
    with clock.part(OBJECTIVE_BACK):
        outcome.loss.backward()
    with clock.part(BACK):
        training.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(list(logits.values()), [leaf.grad for leaf in leaves.values()])
    with clock.part(OPTIMIZER):
        training.optimizer.step()


def random_batch(bands: dict[str, tuple[str, ...]], classes: int, pairs: int, size: int) -> Batch:
    """`pairs` patches of random codes and labels, as the stream delivers them, size x size pixels."""
    draw = torch.Generator().manual_seed(0)

    def codes(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=draw, dtype=torch.uint8)

    return Batch(
        images={name: codes(256, pairs, len(names), size, size) for name, names in bands.items()},
        bands=bands,
        labels=codes(classes, pairs, size, size),
        ids=[str(row) for row in range(pairs)],
        epochs=torch.zeros(pairs, dtype=torch.int64),
        keys=torch.randint(2**62, (pairs,), generator=draw),
    )


def count_gflop(network: nn.Module, channels: dict[str, int], pairs: int, size: int) -> float:
    """GFLOP of forward and backward, counted on the meta device, to which `network` moves: nothing is computed."""
    network.to("meta")
    images = {name: torch.empty(pairs, count, size, size, device="meta") for name, count in channels.items()}
    with FlopCounterMode(display=False) as counter:
        logits = list(network(images).values())
        torch.autograd.backward(logits, [torch.empty_like(z) for z in logits])
    return counter.get_total_flops() / 1e9


class Clock:
    """Seconds of the parts of one step. On a GPU a part ends when its kernels have ended."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = self._now()
        yield
        self.seconds[name] = self._now() - began

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class PeakMemory:
    """`bytes`: how far memory rose, at its highest, above where it was on entry."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0
        on_gpu = device.type == "cuda"
        sampled = f"resident memory, sampled every {1000 * SAMPLING:.0f} ms by a thread"
        self.means = "torch.cuda.max_memory_allocated" if on_gpu else sampled

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            return self
        self._process, self._done = psutil.Process(), threading.Event()
        self._before = self._process.memory_info().rss
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
            return
        self._done.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLING):
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._before)


def table(report: Report) -> str:
    """The report for people."""
    channels = " + ".join(map(str, report.channels.values()))
    where = f"{report.threads} threads, load {report.load:.1f}" if report.device == "cpu" else report.device
    rows = [(part, report.seconds[part], report.shares[part]) for part in PARTS]
    rows.append(("step", report.step_seconds, 1.0))
    return "\n".join(
        [
            f"{report.fusion} fusion of {report.encoder}, {channels} channels, {report.classes} classes; "
            f"{report.batch} pairs of {report.size} x {report.size} pixels; {report.precision}",
            f"{where}; torch {report.torch}; medians over {report.steps} steps after {WARM_UP} to warm up",
            f"\n{'':22} {'ms':>9} {'of the step':>12}",
            *(f"{name:22} {1000 * seconds:9,.1f} {share:12.1%}" for name, seconds, share in rows),
            f"\nthe objective, forward and backward to the logits: {report.objective_share:.1%} of the step",
            f"{report.gflop / report.batch:.1f} GFLOP a pair, {report.gflop_per_second:,.0f} GFLOP/s, "
            f"{report.batch / report.step_seconds:,.1f} pairs/s",
            f"peak memory: {report.memory_bytes / 1e9:.2f} GB more than before the network was built ({report.memory_means})",
        ]
    )


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda: torch finds no GPU here; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _median_ratio(parts: list[float], wholes: list[float]) -> float:
    return median(part / whole for part, whole in zip(parts, wholes, strict=True))
