"""What a run and a sweep will take, before they start: amounts times rates, times the price of a device-hour.

`estimate_run` and `estimate_sweep` are arithmetic; `of_run` and `of_sweep` fetch the rates first, measured where the
hardware is at hand, else computed.
"""

import heapq
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cromss.config import RunConfig
from cromss.costs.amounts import Amounts, amounts
from cromss.costs.facts import Fact, facts, warnings
from cromss.costs.parts import parts
from cromss.costs.rates import Cost, Rates
from cromss.data.store import PatchStore

# What Ray and MLflow take on top, in starts of a process that imports what training needs: usual values.
RAY = 3.0  # Ray itself, started and ended once a command
GROUP = 2.5  # a group of Ray Train workers, once a pretraining
TRIAL = 2.0  # the process of a trial, and what it imports late
TASKS = 2.0  # the processes that downstream runs share, and what they import late, once a command
TRACKING = 1.7  # MLflow and the last records, once a command


@dataclass(frozen=True)
class Row:
    """A part of the whole: `number` times `each` seconds; `seconds` of it on the clock, whoever does them."""

    name: str
    number: float
    each: float
    seconds: float
    how: str
    device_hours: float
    money: float | None
    bottleneck: str


@dataclass(frozen=True)
class Estimate:
    """What it will take: `seconds` on the clock, `device_hours` of GPUs (or CPU cores), `money` at the stated price."""

    title: str
    device: str
    unit: str
    seconds: float
    device_hours: float
    money: float | None
    how: str
    bottleneck: str
    rows: tuple[Row, ...]
    facts: tuple[Fact, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """A table for people."""
        from cromss.costs.table import lines

        return lines(self)

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def estimate_run(
    config: RunConfig, store: PatchStore, downstream: PatchStore | None, rates: Rates, price: float | None = None
) -> Estimate:
    """A pretraining and, with a downstream store, its judgement, as `cromss.pretrain` and `cromss.transfer` run them.

    price   of a device-hour. Raises ValueError where the stores cannot feed the configuration.
    """
    todo = amounts(config, store, downstream)
    found = parts(config, todo, rates)
    start = _around(config, todo, rates)

    def row(name: str, number: float, cost: Cost, seconds: float | None = None, devices: float = rates.devices) -> Row:
        total = cost.seconds * number if seconds is None else seconds
        hours = total * devices / 3600
        return Row(name, number, cost.seconds, total, cost.how, hours, _paid(hours, price), cost.limit)

    first = row("start: processes, Ray, MLflow", 1, start)
    trained = row("pretraining", 1, found.pretraining)
    judged = row("downstream runs", 1, found.downstream, devices=rates.judges)
    rows = [first]
    if todo.steps:
        rows += [
            row("training step", todo.steps, found.step, found.steps.seconds),
            row("validation", todo.epochs, found.validation.times(1 / todo.epochs)),
            *([row("probe", todo.probes, rates.probe)] if todo.probes else []),
            row("checkpoint", todo.checkpoints, rates.checkpoint),
            row("encoders and pictures", 1, rates.finish),
            row("epoch", todo.epochs, found.pretraining.times(1 / todo.epochs)),
            trained,
        ]
    if todo.transfers:
        alone = rates.judges / max(1, min(rates.together, todo.downstream_runs))
        rows += [row(f"one run: {' '.join(key)}", todo.repeats, cost, devices=alone)
                 for key, cost in found.transfers.items()]  # fmt: skip
        rows.append(judged)
    whole = start + found.pretraining + found.downstream
    hours = sum(one.device_hours for one in (first, trained, judged))
    longest = max(found.pretraining, found.downstream, key=lambda cost: cost.seconds)
    rows.append(Row("run", 1, whole.seconds, whole.seconds, whole.how, hours, _paid(hours, price), longest.limit))
    return Estimate(
        title="run",
        device=rates.device,
        unit=_unit(rates),
        seconds=whole.seconds,
        device_hours=hours,
        money=_paid(hours, price),
        how=whole.how,
        bottleneck=longest.limit,
        rows=tuple(rows),
        facts=facts(config, todo, rates, found),
        notes=(*rates.notes, *warnings(rates)),
    )


def estimate_sweep(
    configs: Sequence[RunConfig], store: PatchStore, downstream: PatchStore | None, rates: Sequence[Rates], *,
    concurrent: int, devices_per_trial: float, price: float | None = None,
) -> Estimate:  # fmt: skip
    """Trials, `concurrent` at a time in the order given, each holding its devices from its start to its end.

    rates   of each configuration. A trial that is another's double is not run; a pretraining that another trial does is
    waited for, and one that it has done is taken over.
    """
    slots, ready = [0.0] * max(1, concurrent), {}
    busy, spent, trials = 0.0, Cost(0.0, "measured"), _once(configs, rates)
    limits: dict[str, float] = {}
    counted: dict[str, Amounts] = {}
    for number, (config, speed) in enumerate(trials):
        todo = _amounts(config, store, downstream, counted)
        found = parts(config, todo, speed)
        begin = slots[0]
        launched = begin + _launch(config, todo, speed, number < concurrent)
        address = repr(config.identity())
        trained = ready.get(address, launched + found.pretraining.seconds) if todo.steps else launched
        ready |= {address: trained} if todo.steps else {}
        end = max(launched, trained) + found.downstream.seconds
        heapq.heapreplace(slots, end)
        busy += end - begin
        for cost in (found.pretraining, found.downstream):
            spent = spent + cost
            limits[cost.limit] = limits.get(cost.limit, 0.0) + cost.seconds
    first = rates[0]
    around = (1 + RAY + TRACKING) * first.start.seconds
    seconds, hours = max(slots) + around, busy * devices_per_trial / 3600
    limit = max(limits, key=limits.get)
    rows = (
        Row("start: processes, Ray, MLflow", 1, around, around, "computed", 0.0, _paid(0.0, price), ""),
        Row("trial, on average", len(trials), busy / len(trials), busy, spent.how, hours, _paid(hours, price), limit),
        Row("sweep", 1, seconds, seconds, spent.how, hours, _paid(hours, price), limit),
    )
    notes = tuple(dict.fromkeys(note for speed in rates for note in (*speed.notes, *warnings(speed))))
    return Estimate(
        title=f"sweep of {len(trials)} trials, {concurrent} at a time",
        device=first.device,
        unit=_unit(first),
        seconds=seconds,
        device_hours=hours,
        money=_paid(hours, price),
        how=spent.how,
        bottleneck=limit,
        rows=rows,
        facts=(
            Fact("trials", len(trials), "", "computed"),
            Fact("pretrainings, each done once", len(ready), "", "computed"),
        ),
        notes=notes,
    )


def of_run(
    config: RunConfig, store: PatchStore, downstream: PatchStore | None, *, gpu: str = "auto", seconds: float = 30,
    devices: float = 1, together: int | None = None, price: float | None = None,
) -> Estimate:  # fmt: skip
    """What one run will take. Options as of `of_sweep`; `devices`: GPUs of the run, where no number of workers is set."""
    from cromss.costs.calibration import rates_of

    [rates] = rates_of(
        [config], store, downstream, gpu=gpu, seconds=seconds, together=together, devices=devices
    )  # fmt: skip
    return estimate_run(config, store, downstream, rates, price)


def of_sweep(
    configs: Sequence[RunConfig], store: PatchStore, downstream: PatchStore | None, *, concurrent: int,
    devices_per_trial: float, gpu: str = "auto", seconds: float = 20, together: int | None = None,
    price: float | None = None,
) -> Estimate:  # fmt: skip
    """What a sweep over `configs` (every trial, its seed included) will take.

    gpu       `auto`: what is here; a GPU's name; `cpu`;  seconds   that may be spent on measuring; 0: compute everything
    together  downstream runs of a trial at a time (default: as trials share their devices out)
    Raises ValueError for an unknown GPU and for stores that cannot feed a configuration.
    """
    from cromss.costs.calibration import rates_of

    rates = rates_of(
        configs, store, downstream, gpu=gpu, seconds=seconds, concurrent=concurrent, together=together,
        devices=devices_per_trial,
    )  # fmt: skip
    return estimate_sweep(
        configs, store, downstream, rates, concurrent=concurrent, devices_per_trial=devices_per_trial, price=price
    )


# --- pieces -------------------------------------------------------------------------------------------------------------


def _amounts(config: RunConfig, store: PatchStore, downstream: PatchStore | None, known: dict[str, Amounts]) -> Amounts:
    """The amounts of a trial, from `known` where another one does as much: a plan is made once for all seeds and weights."""
    tree = config.model_dump(mode="json")
    smoothed = tree.pop("objective")["smoothing"]["kind"]
    key = repr((smoothed, {name: value for name, value in tree.items() if name not in ("seed", "sweep")}))
    if key not in known:
        known[key] = amounts(config, store, downstream)
    return known[key]


def _around(config: RunConfig, todo: Amounts, rates: Rates) -> Cost:
    """Processes, Ray, its workers and MLflow, around a pretraining and a judgement that are two commands."""
    starts = 0.0
    if todo.steps:
        starts += 1 + RAY + TRACKING + (GROUP if _grouped(config) else 0.0)
    if todo.transfers:
        starts += 1 + RAY + TASKS + TRACKING
    return Cost(starts * rates.start.seconds, "computed")


def _launch(config: RunConfig, todo: Amounts, rates: Rates, new: bool) -> float:
    """Seconds until a trial works. Without workers of its own it runs in the process of the trial before it."""
    if not _grouped(config):
        return TRIAL * rates.start.seconds if new else 0.0
    return rates.start.seconds * (TRIAL + (GROUP if todo.steps else 0.0) + (TASKS if todo.transfers else 0.0))


def _grouped(config: RunConfig) -> bool:
    """Whether a pretraining starts Ray Train workers."""
    return config.scaling.num_workers != 0


def _once(configs: Sequence[RunConfig], rates: Sequence[Rates]) -> list[tuple[RunConfig, Rates]]:
    """Without trials that are the same as another."""
    found: dict[str, tuple[RunConfig, Rates]] = {}
    for config, speed in zip(configs, rates, strict=True):
        tree = config.model_dump(mode="json")
        found.setdefault(repr((config.identity(), tree["transfer"], tree["probe"])), (config, speed))
    return list(found.values())


def _unit(rates: Rates) -> str:
    return "GPU-hours" if rates.gpu else "core-hours"


def _paid(hours: float, price: float | None) -> float | None:
    return None if price is None else hours * price
