"""What `bench step` found, and how it is told."""

from dataclasses import dataclass

from cromss.benchmarks.objectives import COMPILED, EAGER, RECIPE, Cost
from cromss.benchmarks.sides import BACK, FORWARD, OBJECTIVE, OBJECTIVE_BACK, PARTS
from cromss.costs.hardware import Hardware

WARM_UP = 2  # steps before the clock runs: kernels are chosen, Adam's state is made


@dataclass(frozen=True)
class Timed:
    """What a side's step takes: the fastest of several, which the rest of the machine disturbed least."""

    precision: str
    seconds: dict[str, float]  # of each part

    @classmethod
    def of(cls, precision: str, steps: list[dict[str, float]]) -> "Timed":
        """From the seconds of the parts of each step."""
        return cls(precision, min(steps, key=lambda parts: sum(parts.values())))

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def objective_share(self) -> float:
        """Of the step: forward, and backward as far as the logits."""
        return (self.seconds[OBJECTIVE] + self.seconds[OBJECTIVE_BACK]) / self.step_seconds


@dataclass(frozen=True)
class Alone:
    """A side that had the process, and its memory, for itself; its steps not taken apart."""

    side: str
    precision: str
    step_seconds: float
    memory_bytes: int
    memory_means: str


@dataclass(frozen=True)
class Report:
    """Both sides of one run; `sides`, `moved`, `losses` and `memory_bytes` are keyed by side."""

    fusion: str
    encoder: str
    channels: dict[str, int]  # per modality
    classes: int
    batch: int  # pairs
    size: int  # pixels
    device: str
    threads: int
    load: float  # processes that wanted a CPU in the last minute: others', too
    torch: str
    steps: int
    compile: str  # scaling.compile of our side
    hardware: Hardware
    gflop: float  # of a step: convolutions of network forward and backward, two operations per multiply-add
    sides: dict[str, Timed]
    moved: dict[str, dict[str, int]]  # bytes that each part reads and writes, operator by operator
    losses: dict[str, float]  # of the first step, from equal weights
    objectives: dict[str, Cost]
    memory_bytes: dict[str, int]
    memory_means: str

    @property
    def best(self) -> str:
        """Our faster objective."""
        return min(
            (n for n in (EAGER, COMPILED) if not self.objectives[n].why_not), key=lambda n: self.objectives[n].seconds
        )

    @property
    def ratios(self) -> dict[str, float]:
        """The recipe's cost over ours, so that more is better; of memory ours over the recipe's."""
        recipe, best = self.objectives[RECIPE], self.objectives[self.best]
        return {
            "objective time": recipe.seconds / best.seconds,
            "objective bytes": recipe.bytes / best.bytes,
            "step time": self.sides["recipe"].step_seconds / self.sides["ours"].step_seconds,
            "peak memory": self.memory_bytes["ours"] / self.memory_bytes["recipe"],
        }

    @property
    def headline(self) -> str:
        """One line for people in a hurry."""
        ratios = self.ratios
        return (
            f"objective ({self.best.removeprefix('ours, ')}): {ratios['objective time']:.1f} x as fast, "
            f"{ratios['objective bytes']:.1f} x fewer bytes; step: {ratios['step time']:.2f} x as fast; "
            f"peak memory: {ratios['peak memory']:.2f} x"
        )

    def network_seconds(self, side: str) -> float:
        """Of forward and backward of the networks alone."""
        return self.sides[side].seconds[FORWARD] + self.sides[side].seconds[BACK]


def table(report: Report) -> str:
    """The report for people."""
    return "\n".join([*_head(report), "", *_steps(report), "", *_objectives(report), "", *_machine(report)])


def _head(report: Report) -> list[str]:
    channels = " + ".join(map(str, report.channels.values()))
    where = f"{report.threads} threads, load {report.load:.1f}" if report.device == "cpu" else report.device
    precision = " / ".join(dict.fromkeys(side.precision for side in report.sides.values()))
    return [
        f"{report.fusion} fusion of {report.encoder}, {channels} channels, {report.classes} classes; "
        f"{report.batch} pairs of {report.size} x {report.size} pixels; {precision}",
        f"{where}; torch {report.torch}; the fastest of {report.steps} steps after {WARM_UP} to warm up, in turns",
        "recipe: the authors' recipe stated plainly in eager torch, networks in torch's own layout, Adam unfused",
        f"ours:   the same maths as configured, scaling.compile={report.compile}",
    ]


def _steps(report: Report) -> list[str]:
    recipe, ours = report.sides["recipe"], report.sides["ours"]
    lines = [f"{'':22} {'recipe, ms':>12} {'of the step':>12} {'ours, ms':>12} {'of the step':>12} {'as fast':>10}"]
    rows = [(part, recipe.seconds[part], ours.seconds[part]) for part in PARTS]
    for name, theirs, own in [*rows, ("step", recipe.step_seconds, ours.step_seconds)]:
        lines.append(
            f"{name:22} {1000 * theirs:12,.1f} {theirs / recipe.step_seconds:12.1%} {1000 * own:12,.1f} "
            f"{own / ours.step_seconds:12.1%} {theirs / own:8.2f} x"
        )
    return lines


def _objectives(report: Report) -> list[str]:
    lines = [
        f"{'objective alone':22} {'ms':>9} {'MB moved':>9} {'operators':>9} {'as fast':>10} {'fewer bytes':>12} "
        f"{'loss differs':>13} {'gradients':>10} {'compiled in':>12}"
    ]
    recipe = report.objectives[RECIPE]
    for name, cost in report.objectives.items():
        if cost.why_not:
            lines.append(f"{name:22} {cost.why_not}")
            continue
        operators = "fused" if cost.operators is None else f"{cost.operators:,}"
        took = "" if cost.compile_seconds is None else f"{cost.compile_seconds:.1f} s"
        lines.append(
            f"{name:22} {1000 * cost.seconds:9,.1f} {cost.bytes / 1e6:9,.1f} {operators:>9} "
            f"{recipe.seconds / cost.seconds:8.2f} x {recipe.bytes / cost.bytes:10.1f} x {cost.loss_error:13.1e} "
            f"{cost.gradient_error:10.1e} {took:>12}".rstrip()
        )
    shares = ", ".join(f"{name} {side.objective_share:.1%}" for name, side in report.sides.items())
    return [
        *lines,
        "forward and backward to the logits; bytes are counted, not measured; differences are from the recipe's, on equal",
        "logits: of the loss, and the largest of a gradient relative to the largest gradient",
        f"the objective's share of the step: {shares}",
        "first loss from equal weights: " + ", ".join(f"{name} {loss:.6f}" for name, loss in report.losses.items()),
    ]


def _machine(report: Report) -> list[str]:
    hardware = report.hardware
    says = "measured here" if hardware.measured else "data sheet"
    lines = [
        f"{hardware.title}: {hardware.flops / 1e9:,.0f} GFLOP/s, {hardware.bandwidth / 1e9:,.1f} GB/s ({says})",
        f"{report.gflop / report.batch:.1f} GFLOP a pair, convolutions of forward and backward",
        f"{'':8} {'pairs/s':>9} {'GFLOP/s':>10} {'of the peak':>12} {'GB a step':>10} {'GB/s':>7} {'peak memory':>12}",
    ]
    for name, side in report.sides.items():
        rate, moved = report.gflop / side.step_seconds, sum(report.moved[name].values()) / 1e9
        lines.append(
            f"{name:8} {report.batch / side.step_seconds:9,.2f} {rate:10,.0f} {1e9 * rate / hardware.flops:12.1%} "
            f"{moved:10.2f} {moved / side.step_seconds:7.1f} {report.memory_bytes[name] / 1e9:9.2f} GB"
        )
    return [
        *lines,
        f"peak memory: more than before the network was built, each side in a process of its own ({report.memory_means})",
    ]
