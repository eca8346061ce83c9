"""One run in pieces: amounts times rates. Arithmetic, nothing else."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil

from cromss.config import RunConfig
from cromss.costs.amounts import Amounts, TransferAmounts, expected_views
from cromss.costs.rates import NOTHING, Cost, Rates, TransferRates


@dataclass(frozen=True)
class Parts:
    """What the pieces of one run take, processes' starts left out. `step` is one step, `transfers` one run of each kind,
    `downstream` all of them on the clock."""

    step: Cost
    steps: Cost
    validation: Cost
    probes: Cost
    checkpoints: Cost
    finish: Cost
    transfers: dict[tuple[str, str], Cost]
    downstream: Cost

    @property
    def pretraining(self) -> Cost:
        """From building the network to the written encoders."""
        return self.steps + self.validation + self.probes + self.checkpoints + self.finish


def parts(config: RunConfig, todo: Amounts, rates: Rates) -> Parts:
    """Amounts times rates."""
    runs = {key: transfer(config, key[1], todo.transfers[key], rates.transfers[key]) for key in todo.transfers}
    judged = side_by_side([cost for cost in runs.values() for _ in range(todo.repeats)], rates.together)
    if not todo.steps:
        return Parts(*[NOTHING] * 6, runs, judged)
    one = step(config, todo, rates)
    return Parts(
        step=one,
        steps=one.times(todo.steps) + rates.first,
        validation=rates.passes.times(todo.epochs) + rates.place.times(todo.epochs * todo.validated / rates.workers),
        probes=rates.probe.times(todo.probes),
        checkpoints=rates.checkpoint.times(todo.checkpoints),
        finish=rates.finish,
        transfers=runs,
        downstream=judged,
    )


def step(config: RunConfig, todo: Amounts, rates: Rates) -> Cost:
    """A training step: as long as its arithmetic, its decoding or its reading, whichever takes longest."""
    batch = config.optim.batch_size
    decode = batch / rates.workers / rates.reader if rates.reader else 0.0
    read = batch * bytes_from_storage(todo) / rates.storage if rates.storage else 0.0
    found = (rates.step, Cost(decode, rates.reader_how, "decode"), Cost(read, rates.storage_how, "storage"))
    return max(found, key=lambda cost: cost.seconds)


def bytes_from_storage(todo: Amounts) -> float:
    """Bytes of a place that come from the disk or bucket: a store that memory holds is read there once in a run."""
    total = todo.epochs * todo.epoch_bytes
    if todo.store_bytes < psutil.virtual_memory().total / 2:
        total = min(total, todo.store_bytes)
    return total / max(1, todo.epochs * todo.places)


def transfer(config: RunConfig, mode: str, todo: TransferAmounts, rates: TransferRates) -> Cost:
    """One downstream run. Where a frozen encoder's features are kept, it looks at each view of a place once."""
    steps, judged = rates.step.times(todo.steps), config.transfer
    kept = mode == "frozen" and judged.frozen_batchnorm == "fixed" and judged.feature_cache_gb and judged.epochs > 1
    if kept and judged.augment.crop is None:
        looked = todo.drawn / judged.epochs * expected_views(judged.augment, judged.epochs)
        spared = rates.encode.seconds * max(0.0, todo.drawn - looked)
        steps = replace(steps, seconds=max(steps.seconds - spared, 0.05 * steps.seconds))
    return rates.begin.times(todo.trainings) + steps + rates.place.times(todo.scored)


def side_by_side(costs: Sequence[Cost], together: int) -> Cost:
    """The clock's time of runs that `together` places take, each the next one when it is free."""
    if not costs:
        return NOTHING
    ends, total = [0.0] * max(1, together), NOTHING
    for cost in costs:
        total = total + cost
        heapq.heapreplace(ends, ends[0] + cost.seconds)
    return replace(total, seconds=max(ends))
