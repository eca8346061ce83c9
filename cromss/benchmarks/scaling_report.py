"""What `bench scaling` found: the points of every axis, their laws, and how all of it is told."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from cromss.benchmarks.scaling_law import Law, duration, fit, power, volume
from cromss.benchmarks.scaling_point import WARM_UP, Setting


@dataclass(frozen=True)
class Axis:
    """What is varied: its unit, the power of it by which the arithmetic of a step grows, its option."""

    unit: str
    work: int
    option: str
    help: str


AXES = {
    "batch": Axis("pairs", 1, "batches", "pairs of a step (default: a quarter to twice --batch)"),
    "size": Axis("pixels", 2, "sizes", "pixels of a side (default: half to twice --size)"),
    "classes": Axis("classes", 1, "classes", "numbers of classes (default: those of four label schemes)"),
    "modalities": Axis(
        "modalities", 1, "modalities", "1: S2 alone; 2: S1 and S2, middle and late fusion; more: with stand-ins (1,2,3)"
    ),
    "workers": Axis(
        "workers", -1, "workers", "processes that share --batch (default: 1,2,4,... as far as cores or GPUs go round)"
    ),
}


@dataclass(frozen=True)
class Measured:
    """The steps of one point. `memory_bytes`: of one worker."""

    value: int
    fusion: str
    step: tuple[float, ...]  # seconds, one a step
    objective: tuple[float, ...]
    memory_bytes: int

    @property
    def step_seconds(self) -> float:
        return median(self.step)

    @property
    def objective_seconds(self) -> float:
        return median(self.objective)


@dataclass(frozen=True)
class Growth:
    """An axis with its points, in order, and the laws that they follow: None where there is one point only."""

    axis: str
    points: tuple[Measured, ...]
    laws: dict[str, Law]  # step, objective, memory; empty where there is one point only
    slope: float | None  # of the step's log-log line, whatever its law

    @property
    def fitted(self) -> tuple[Measured, ...]:
        """The points that the laws are fitted to: late fusion stands beside them."""
        return tuple(point for point in self.points if point.fusion != "late")


@dataclass(frozen=True)
class Report:
    """All that was measured, and where."""

    base: Setting
    growths: tuple[Growth, ...]
    steps: int
    precision: str
    device: str
    threads: int
    worker_threads: int
    load: float  # processes that wanted a CPU in the minute before the end: others', too
    torch: str
    memory_means: str


COSTS: dict[str, tuple[Callable[[Measured], float], Callable[[float], str]]] = {
    "step": (lambda point: point.step_seconds, duration),
    "objective": (lambda point: point.objective_seconds, duration),
    "memory": (lambda point: float(point.memory_bytes), volume),
}


def growth(axis: str, points: tuple[Measured, ...]) -> Growth:
    """The points of an axis with their laws."""
    bare = Growth(axis, points, {}, None)
    x = [point.value for point in bare.fitted]
    if len(x) < 2:
        return bare
    laws = {name: fit(x, [cost(point) for point in bare.fitted], AXES[axis].work) for name, (cost, _) in COSTS.items()}
    return replace(bare, laws=laws, slope=power(x, [point.step_seconds for point in bare.fitted]).exponent)


def table(report: Report) -> str:
    """The report for people: the points of every axis, and its law in words."""
    base = report.base
    threads = f"{report.threads} thread{'s' * (report.threads > 1)}"
    where = f"{threads}, load {report.load:.1f}" if report.device == "cpu" else report.device
    lines = [
        f"\nbase point: {base.fusion} fusion of {base.encoder}, {base.classes} classes, {base.pairs} pairs of "
        f"{base.size} x {base.size} pixels; {report.precision}",
        f"{where}; torch {report.torch}; medians over {report.steps} steps, in turns, after {WARM_UP} to warm up",
        f"memory: {report.memory_means}",
    ]
    for one in report.growths:
        unit = AXES[one.axis].unit
        shared = one.axis == "workers"
        lines.append(
            f"\n{unit:>16} {'step':>10} {'x':>6} {'objective':>10} {'memory':>9}" + f" {'efficiency':>11}" * shared
        )
        for point in one.points:
            name = f"{point.value} (late)" if point.fusion == "late" else str(point.value)
            line = (
                f"{name:>16} {duration(point.step_seconds):>10} {point.step_seconds / one.points[0].step_seconds:6.2f} "
                f"{duration(point.objective_seconds):>10} {volume(point.memory_bytes):>9}"
            )
            lines.append(line + f" {efficiency(one, point):11.0%}" * shared)
        if shared:
            lines.append(f"{'':17}{_sharing(report)}")
    return "\n".join([*lines, "", *map(words, report.growths)])


def words(one: Growth) -> str:
    """The law of an axis as a sentence."""
    unit = AXES[one.axis].unit
    if not one.laws:
        return f"{one.axis}: one point is no law"
    first, last = one.fitted[0], one.fitted[-1]
    law, ratio = one.laws["step"], last.step_seconds / first.step_seconds
    grows = "grows" if one.slope >= 0 else "shrinks"
    how = f"takes {law.formula(unit, duration)}" if law.constant else f"{grows} as {unit}^{one.slope:.2f}"
    within = f"within {law.error:.0%}" if len(one.fitted) > 2 else "two points: a slope, no law"
    times = f"from {first.value} to {last.value} {unit} {ratio:.1f} x"
    if one.axis == "workers":
        times = f"{last.value} {unit} are {1 / ratio:.2f} x as fast as {first.value}, efficiency {efficiency(one, last):.0%}"
    objective, memory = (one.laws[name].formula(unit, COSTS[name][1]) for name in ("objective", "memory"))
    return f"{one.axis}: a step {how} ({within}); {times}\n{'':{len(one.axis) + 2}}objective: {objective}; memory: {memory}"


def efficiency(one: Growth, point: Measured) -> float:
    """The speed of so many workers over that many times the speed of the fewest."""
    fewest = one.points[0]
    return fewest.step_seconds * fewest.value / (point.step_seconds * point.value)


def _sharing(report: Report) -> str:
    own = f"{report.worker_threads} thread{'s' * (report.worker_threads > 1)}" if report.device == "cpu" else "a GPU"
    return f"each worker has {own}; together they compute the {report.base.pairs} pairs; memory: of one"


def as_json(report: Report) -> dict[str, Any]:
    """Plain values, medians and laws in words included."""
    found = asdict(report)
    for plain, one in zip(found["growths"], report.growths, strict=True):
        plain["unit"], plain["words"] = AXES[one.axis].unit, words(one)
        for row, point in zip(plain["points"], one.points, strict=True):
            row |= {"step_seconds": point.step_seconds, "objective_seconds": point.objective_seconds}
            if one.axis == "workers":
                row["efficiency"] = efficiency(one, point)
    return found
