"""What is known of a run beside its times: FLOP, bytes, memory, floors, the published speed."""

from dataclasses import dataclass

from cromss.config import RunConfig
from cromss.costs.amounts import Amounts
from cromss.costs.computed import PAPER_PAIRS
from cromss.costs.parts import Parts
from cromss.costs.rates import Rates
from cromss.costs.work import MASTER_BYTES


@dataclass(frozen=True)
class Fact:
    """A number that is no time, with its unit; `how` it is known: measured or computed."""

    name: str
    value: float
    unit: str
    how: str


def facts(config: RunConfig, todo: Amounts, rates: Rates, found: Parts) -> tuple[Fact, ...]:
    """The facts of a pretraining; none without one."""
    if not todo.steps or rates.counted is None or rates.on is None:
        return ()
    once, on, workers = rates.counted, rates.on, rates.workers
    pairs = config.optim.batch_size / found.step.seconds
    speed, rate = once.flop / found.step.seconds, once.bytes / found.step.seconds
    floors = [each * todo.steps * workers / 3600 for each in
              (once.flop / on.flops, once.seconds(on), once.seconds(on, fused=True))]  # fmt: skip
    hours = "GPU-hours" if rates.gpu else "process-hours"
    peak = "measured" if on.measured else "computed"
    kept = once.saved + MASTER_BYTES * once.parameters
    lines = [
        Fact("places trained on", todo.places, "an epoch", "computed"),
        Fact("weights", once.parameters / 1e6, "million", "computed"),
        Fact("arithmetic of a step", once.flop * workers / 1e9, "GFLOP", "computed"),
        Fact("arithmetic of an epoch", once.flop * workers * todo.steps / todo.epochs / 1e12, "TFLOP", "computed"),
        Fact("arithmetic of the pretraining", once.flop * workers * todo.steps / 1e15, "PFLOP", "computed"),
        Fact("memory traffic of a step, eager", once.bytes * workers / 1e9, "GB", "computed"),
        Fact("memory traffic of a step, fused", once.fused_bytes * workers / 1e9, "GB", "computed"),
        Fact("memory of a worker: weights, Adam, activations", kept / 1e9, "GB", "computed"),
        Fact("read from the store", todo.epoch_bytes / 1e9, "GB an epoch", "computed"),
        Fact("speed", pairs, "pairs/s", found.step.how),
        Fact("speed of a worker", speed / 1e9, "GFLOP/s", found.step.how),
        Fact("share of its peak", 100 * speed / on.flops, "%", found.step.how if on.measured else "computed"),
        Fact("memory traffic of a worker, were it eager", rate / 1e9, "GB/s", found.step.how),
        Fact("floor: arithmetic at the peak", floors[0], hours, peak),
        Fact("floor: eager, roofline by operator", floors[1], hours, peak),
        Fact("floor: fused into the convolutions", floors[2], hours, peak),
    ]
    if rates.reader:
        lines.append(Fact("reader of a worker", rates.reader, "places/s", rates.reader_how))
    if rates.storage:
        lines.append(Fact("storage", rates.storage / 1e6, "MB/s", rates.storage_how))
    if rates.gpu:
        published = todo.steps * config.optim.batch_size / PAPER_PAIRS / 3600
        lines.append(Fact("at the published 55 pairs/s of an A100", published, "GPU-hours", "computed"))
    return tuple(lines)


def warnings(rates: Rates) -> tuple[str, ...]:
    """What will not go well, as sentences."""
    if rates.counted is None or rates.on is None:
        return ()
    kept = rates.counted.saved + MASTER_BYTES * rates.counted.parameters
    if kept > rates.on.memory:
        return (
            f"warning: a worker's step needs about {kept / 1e9:,.0f} GB, {rates.on.title} has "
            f"{rates.on.memory / 1e9:,.0f} GB; set scaling.micro_batch=auto, or use more workers",
        )
    return ()
