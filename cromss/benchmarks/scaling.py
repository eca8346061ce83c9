"""How the cost of a training step grows with the batch, the image size, the classes, the modalities and the workers.

One axis is varied at a time, everything else stays at a base point. The points of an axis take turns, step by step, so that
whatever else the machine does hits all of them alike.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cromss.benchmarks.scaling_point import MEMORY_MEANS, Point, Sample, Setting, modalities
from cromss.benchmarks.scaling_report import AXES, Growth, Measured, Report, as_json, growth, table
from cromss.benchmarks.scaling_workers import Crew
from cromss.config import RunConfig
from cromss.landcover import BIGEARTHNET, CORINE, DYNAMIC_WORLD, IGNORE, WATER
from cromss.networks.encoders import build_encoder
from cromss.settings import suggest
from cromss.training.state import device_precision


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench scaling`."""
    parser.add_argument("--encoder", default="resnet18", help="backbone of the U-Nets (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=128, help="pixels of a side at the base point (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=4, help="pairs of a step at the base point (default: %(default)s)")
    parser.add_argument("--axes", default=",".join(AXES), help="what to vary (default: %(default)s)")
    for name, axis in AXES.items():
        parser.add_argument(f"--{axis.option}", dest=f"{name}_values", type=_numbers, metavar="N,...", help=axis.help)
    parser.add_argument("--threads", type=int, help="torch threads on a CPU, dealt out to workers (default: torch's)")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of every point (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the laws there")
    parser.set_defaults(run=run)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(number) for number in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers, comma-separated, such as 1,2,4") from None


def run(options: argparse.Namespace) -> int:
    """Measure and print. Raises ValueError for what cannot be measured, before anything is."""
    for name in ("json", "png"):
        if (file := getattr(options, name)) and not file.parent.is_dir():
            raise ValueError(f"--{name}={file}: there is no folder {file.parent}; create it first")
    plan = plan_of(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    report = measure(plan, lambda line: print(line, flush=True))
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps(as_json(report), indent=1) + "\n")
    if options.png:
        from cromss.benchmarks.scaling_picture import draw

        draw(report, options.png)
    return 0


# --- what is to be measured -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The base point, and the values that each axis takes while everything else stays there."""

    base: Setting
    values: dict[str, tuple[int, ...]]  # axis -> ascending
    steps: int
    device: torch.device


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan of the options. Raises ValueError, naming the option, for values that cannot be measured."""
    for name in ("size", "batch", "threads", "steps"):
        if (number := getattr(options, name)) is not None and number < 1:
            raise ValueError(f"--{name}={number}: must be 1 or more")
    axes = tuple(filter(None, options.axes.split(",")))
    for axis in axes:
        if axis not in AXES:
            raise ValueError(f"--axes={options.axes}: {axis!r} is none{suggest(axis, AXES)}")
    if not axes:
        raise ValueError(f"--axes={options.axes!r}: name at least one of {', '.join(AXES)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda: torch finds no GPU here; use cpu or auto")
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    base = Setting(
        options.encoder, options.batch, options.size, len(DYNAMIC_WORLD), RunConfig().model.fusion.modalities
    )
    stride = build_encoder(base.encoder, 3).output_stride
    _check("--size", "size", base.size, base, stride, device)
    values = {}
    for name, axis in AXES.items():
        if name in axes:
            values[name] = getattr(options, f"{name}_values") or _defaults(name, base, stride, device)
            for value in values[name]:
                _check(f"--{axis.option}", name, value, base, stride, device)
    return Plan(base, values, options.steps, device)


def _defaults(axis: str, base: Setting, stride: int, device: torch.device) -> tuple[int, ...]:
    match axis:
        case "batch":
            values = [base.pairs // 4, base.pairs // 2, base.pairs, 2 * base.pairs]
        case "size":
            values = [round(base.size * times / stride) * stride for times in (0.5, 0.75, 1, 1.5, 2)]
        case "classes":
            values = [len(scheme) for scheme in (WATER, DYNAMIC_WORLD, BIGEARTHNET, CORINE)]
        case "modalities":
            values = [1, 2, 3]
        case "workers":
            values = [2**power for power in range(_places(device).bit_length())]
    return tuple(sorted({value for value in values if not _complaint(axis, value, base, stride, device)}))


def _check(option: str, axis: str, value: int, base: Setting, stride: int, device: torch.device) -> None:
    if complaint := _complaint(axis, value, base, stride, device):
        raise ValueError(f"{option}={value}: {complaint}")


def _complaint(axis: str, value: int, base: Setting, stride: int, device: torch.device) -> str:
    """Why the axis cannot take that value, with the way out; empty where it can."""
    if value < 1:
        return "must be 1 or more"
    if axis == "size" and value % stride:
        nearest = max(stride, round(value / stride) * stride)
        return f"must be divisible by the stride {stride} of {base.encoder}; the nearest valid size is {nearest}"
    if axis == "classes" and not 2 <= value <= IGNORE:
        return f"must lie between 2 and {IGNORE}: a label is a byte, and {IGNORE} means none"
    if axis == "workers" and base.pairs % value:
        return f"{base.pairs} pairs cannot be shared evenly; choose a divisor of them, or another --batch"
    if axis == "workers" and device.type == "cuda" and value > _places(device):
        return f"there are {_places(device)} GPUs, and each worker needs one"
    pairs = value if axis == "batch" else base.pairs // value if axis == "workers" else base.pairs
    size = value if axis == "size" else base.size
    if pairs * (size // stride) ** 2 < 2:
        return (
            f"one pair of {size} pixels leaves BatchNorm a single value behind a stride of {stride}; use more of either"
        )
    return ""


def _places(device: torch.device) -> int:
    """For how many workers there is a device of their own."""
    return torch.cuda.device_count() if device.type == "cuda" else os.cpu_count() or 1


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(plan: Plan, say: Callable[[str], None] = lambda line: None) -> Report:
    """Train on random pixels, axis by axis. Raises ValueError as the network does, RuntimeError when a worker fails."""
    threads = torch.get_num_threads()
    each = max(1, threads // max(plan.values.get("workers", (1,))))
    on_gpu = plan.device.type == "cuda"
    growths = []
    with _one_kernel_a_shape() if on_gpu else nullcontext():
        for axis, values in plan.values.items():
            say(f"{axis}: {', '.join(map(str, values))} {AXES[axis].unit} ...")
            growths.append(_growth(axis, plan, each))
    return Report(
        base=plan.base,
        growths=tuple(growths),
        steps=plan.steps,
        precision=str(device_precision(plan.device, RunConfig().optim.precision)).removeprefix("torch."),
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        threads=threads,
        worker_threads=each,
        load=os.getloadavg()[0],
        torch=torch.__version__,
        memory_means=MEMORY_MEANS[plan.device.type],
    )


def _growth(axis: str, plan: Plan, worker_threads: int) -> Growth:
    with ExitStack() as stack:
        contenders = list(_contenders(axis, plan, worker_threads, stack))
        samples: list[list[Sample]] = [[] for _ in contenders]
        for _ in range(plan.steps):
            for (_, _, contender), taken in zip(contenders, samples, strict=True):
                taken.append(contender())
        points = tuple(
            Measured(value, fusion, *map(tuple, zip(*taken, strict=True)), contender.memory_bytes)
            for (value, fusion, contender), taken in zip(contenders, samples, strict=True)
        )
    return growth(axis, points)


def _one_kernel_a_shape() -> AbstractContextManager[None]:
    """Compile every point for its own sizes, as a run is: after the second size torch.compile would turn to kernels for
    any, and after the eighth to none."""
    import torch._dynamo  # seconds

    return torch._dynamo.config.patch(automatic_dynamic_shapes=False, recompile_limit=64)


def _contenders(
    axis: str, plan: Plan, worker_threads: int, stack: ExitStack
) -> Iterator[tuple[int, str, Point | Crew]]:
    """(value, fusion, what does a step when called) for every point of the axis; they live as long as `stack`."""
    base, device = plan.base, plan.device
    for value in plan.values[axis]:
        match axis:
            case "batch":
                setting = replace(base, pairs=value)
            case "size":
                setting = replace(base, size=value)
            case "classes":
                setting = replace(base, classes=value)
            case "modalities":
                setting = replace(base, modalities=stack.enter_context(modalities(value)))
            case "workers":
                yield value, base.fusion, stack.enter_context(Crew(base, value, worker_threads, device))
                continue
        yield value, setting.fusion, Point(setting, device)
        if axis == "modalities" and value == 2:
            yield value, "late", Point(replace(setting, late=True), device)
