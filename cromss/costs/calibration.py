"""Rates of configurations: measured in a few seconds where the hardware is at hand, else computed from a data sheet."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psutil
import torch

from cromss.config import RunConfig
from cromss.costs.amounts import Amounts, amounts
from cromss.costs.computed import FEW, ON_CPU, computed, fed_bands
from cromss.costs.crowd import Crowd, Unmeasured
from cromss.costs.hardware import Hardware
from cromss.costs.measuring import LEAST as LEAST_STEPS
from cromss.costs.measuring import WARM_UP
from cromss.costs.place import STOOD_IN, Place, place_of, same_work, stand_in
from cromss.costs.rates import Cost, Rates, TransferRates
from cromss.data.store import PatchStore

LEAST = 4.0  # seconds in which a configuration can be measured
SURE = 0.8  # of the time there is: a piece that is under way is finished
MOST = 16  # processes that measure side by side


def rates_of(
    configs: Sequence[RunConfig], store: PatchStore, downstream: PatchStore | None, **options: Any
) -> list[Rates]:
    """`_rates_of`, where a self-supervised pretraining is taken for a supervised one of the same encoders."""
    rates = _rates_of([stand_in(config) for config in configs], store, downstream, **options)
    return [one if stand_in(config) == config else replace(one, notes=(*one.notes, STOOD_IN))
            for one, config in zip(rates, configs, strict=True)]  # fmt: skip


def _rates_of(
    configs: Sequence[RunConfig], store: PatchStore, downstream: PatchStore | None, *, gpu: str = "auto",
    seconds: float = 20, concurrent: int = 1, together: int | None = None, devices: float = 1.0,
) -> list[Rates]:  # fmt: skip
    """The rates of each configuration. Those that take the same steps are counted and measured once; where `seconds` do
    not reach for all, the rest is scaled from the first by what was counted. Raises ValueError for bad input."""
    began, load = time.monotonic(), os.getloadavg()[0]
    classes: dict[str, RunConfig] = {}
    for config in configs:
        classes.setdefault(same_work(config), config)
    first = configs[0]
    where = {key: place_of(one, gpu=gpu, concurrent=concurrent, together=together, devices=devices)
             for key, one in classes.items()}  # fmt: skip
    here_ = where[same_work(first)]
    found: dict[str, Rates] = {}
    if not seconds or not here_.at_hand:
        found = {key: _by_sheet(one, store, downstream, where[key]) for key, one in classes.items()}
        if seconds:
            found = _with_reader(found, first, store, min(seconds / 4, 2.0))
        return [found[same_work(config)] for config in configs]
    _reference: tuple[Rates, Rates] | None = None
    needed = here_.concurrent * max(here_.workers, here_.together) if not here_.gpu else 1
    try:
        with Crowd(min(needed, MOST, 2 * (os.cpu_count() or 1))) as crowd:
            peaks, busy = _peaks(crowd, here_), _busy(load)
            left = max(LEAST, seconds - (time.monotonic() - began))
            for number, (key, config) in enumerate(classes.items()):
                asked = time.monotonic()
                sheet = _by_sheet(config, store, downstream, replace(where[key], on=peaks))
                if left < LEAST and found:
                    found[key] = _scaled(sheet, *_reference)
                    continue
                counted = time.monotonic() - asked
                share = max(LEAST, SURE * (left - counted) / (len(classes) - number))
                rates = _measured(crowd, config, store, downstream, where[key], sheet, share)
                found[key] = replace(rates, notes=(*rates.notes, *busy))
                _reference = found[key], sheet
                left -= time.monotonic() - asked
    except Unmeasured as failure:
        for key, config in classes.items():
            if key not in found:
                sheet = _by_sheet(config, store, downstream, where[key])
                found[key] = replace(sheet, notes=(*sheet.notes, f"could not be measured here: {failure}"))
    return [found[same_work(config)] for config in configs]


def _busy(load: float) -> tuple[str, ...]:
    """A warning where others used this machine's CPUs just before the measurement."""
    cores = os.cpu_count() or 1
    if load < 0.75 * cores:
        return ()
    return (
        f"warning: {load:.1f} processes wanted the {cores} CPUs of this machine before; times are those of a quiet one",
    )


def _by_sheet(config: RunConfig, store: PatchStore, downstream: PatchStore | None, where: Place) -> Rates:
    found = computed(config, store, downstream, where.on, workers=where.workers, together=where.together)
    runs = len(found.transfers) * config.transfer.repeats
    held = where.workers if where.gpu else where.workers * where.threads
    judges = where.workers if where.gpu else max(1, min(where.together, runs)) * where.task_threads
    return replace(found, device=where.device, gpu=where.gpu, devices=held, judges=judges)


# --- measured -----------------------------------------------------------------------------------------------------------


def _measured(
    crowd: Crowd, config: RunConfig, store: PatchStore, downstream: PatchStore | None, where: Place, sheet: Rates,
    seconds: float,
) -> Rates:  # fmt: skip
    """`sheet` with everything replaced that a few seconds can measure."""
    pretrains, rates, ratio = config.pretraining.trains, replace(sheet, notes=()), 1.0
    rates = replace(rates, start=Cost(crowd.started, "measured"))
    judged = sheet.transfers if downstream is not None else {}
    if pretrains:
        share = seconds * (0.55 if judged else 0.9)
        rates = _pretraining(crowd, config, store, downstream, where, rates, share)
        ratio = rates.step.seconds / sheet.step.seconds if sheet.step.seconds else 1.0
    if judged:
        share = seconds * (0.4 if pretrains else 0.95) / len(judged)
        todo = amounts(config, store, downstream)
        found = {key: _transfer(crowd, config, store, downstream, where, key, todo, judged[key], ratio, share)
                 for key in judged}  # fmt: skip
        rates = replace(rates, transfers=found)
    side = max(where.workers, where.together) * where.concurrent
    if not where.gpu and side > crowd.size:
        rates = replace(
            rates, notes=(*rates.notes, f"measured with {crowd.size} processes side by side; the run has {side}")
        )
    return rates


def _pretraining(
    crowd: Crowd, config: RunConfig, store: PatchStore, downstream: PatchStore | None, where: Place, sheet: Rates,
    seconds: float,
) -> Rates:  # fmt: skip
    own = max(1, config.optim.batch_size // where.workers)
    members = min(crowd.size, where.workers * where.concurrent)
    pairs = _affordable(own, sheet, seconds, where, members)
    small = sheet.probe.seconds + sheet.finish.seconds + sheet.place.seconds * 32 < seconds / 3
    found = crowd.ask(
        "pretraining", config.model_dump(mode="json"), [store, downstream], threads=where.threads, patience=20 * seconds,
        members=members, ranks=where.workers, pairs=pairs, seconds=seconds, fast=small,
        device="cuda" if where.gpu else "cpu",
    )  # fmt: skip
    step = Cost(found["step"], "measured", _limit(found, sheet, own, seconds))
    swapped = sheet.counted.parameters * 8 * (where.workers - 1) / where.workers
    if swapped:  # the workers of the measurement do not know each other
        step = replace(step, seconds=step.seconds + (0.0 if where.gpu else swapped / ON_CPU.exchange))
    finish = Cost(found["finish"] + found["noise"], "measured", "compute")
    if not small:
        finish = finish + sheet.place.times(FEW * found["step"] / sheet.step.seconds)
    rates = replace(
        sheet,
        step=step,
        first=Cost(found["first"] + found.get("probe_data", 0.0), "measured"),
        passes=Cost(found["passes"], "measured", step.limit),
        place=Cost(found["place"], "measured", step.limit),
        probe=Cost(found.get("probe", 0.0), "measured", step.limit),
        checkpoint=Cost(found["checkpoint"], "measured", "storage"),
        finish=finish,
        reader=0.0,
    )
    read = crowd.ask("reading", config.model_dump(mode="json"), [store], threads=where.threads, patience=10.0,
                     members=members, seconds=min(1.0, seconds / 10))  # fmt: skip
    notes = sheet.notes
    if pairs < own:
        notes = (*notes, f"a training step was measured with {pairs} of {own} pairs, and scaled by its counted FLOP")
    return replace(_reads(rates, read), notes=notes)


def _affordable(own: int, sheet: Rates, seconds: float, where: Place, members: int) -> int:
    """Pairs of a step that time and memory allow to measure; all of them where that can be."""
    steps = WARM_UP + LEAST_STEPS + 1
    expected = max(sheet.step.seconds, 1e-9)
    by_time = int(own * 0.6 * seconds / steps / expected)
    if where.gpu:
        free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else sheet.on.memory
    else:
        free = psutil.virtual_memory().available / members
    by_memory = int(free / 2 / max(1.0, sheet.counted.saved / own))
    least = min(own, 2)  # a normalisation of one value is none
    wanted = own if expected * steps < seconds or where.gpu else by_time
    return max(least, min(own, wanted, by_memory))


def _limit(found: dict[str, float], sheet: Rates, own: int, seconds: float) -> str:
    """What a measured step waits for most."""
    if found["waited"] > 0.5:
        return "decode"
    return sheet.step.limit


def _transfer(
    crowd: Crowd, config: RunConfig, store: PatchStore, downstream: PatchStore, where: Place, key: tuple[str, str],
    todo: Amounts, sheet: TransferRates, ratio: float, seconds: float,
) -> TransferRates:  # fmt: skip
    """The pieces of one downstream run: of the whole run where that is quick, else of a few steps."""
    modality, mode = key
    run, places = todo.transfers[key], downstream.places("train")
    batch, epochs = min(config.transfer.batch_size, places), config.transfer.epochs
    step, place = sheet.step.seconds * ratio, sheet.place.seconds * ratio
    learn, scored, images = places, downstream.places("test"), batch
    if run.steps * step + run.scored * place > seconds:
        images = max(min(batch, 2), min(batch, int(batch * seconds / 8 / max(step, 1e-9))))
        learn = min(places, 2 * images)
        scored = max(1, min(scored, int(seconds / 4 / max(place, 1e-9))))
        an_epoch = max(1, learn // images) * step * images / batch
        epochs = max(min(2, epochs), min(epochs, int(seconds / 2 / max(an_epoch, 1e-9))))
    members = min(crowd.size, where.concurrent * min(where.together, todo.downstream_runs)) if not where.gpu else 1
    found = crowd.ask(
        "transfer", config.model_dump(mode="json"), [downstream], threads=where.task_threads, patience=20 * seconds,
        members=members, modality=modality, mode=mode, bands=fed_bands(config, store, downstream, modality),
        device="cuda" if where.gpu else "cpu", epochs=epochs, images=images, learn=learn, scored=scored,
    )  # fmt: skip
    limit = sheet.step.limit
    return TransferRates(*(Cost(found[name], "measured", limit) for name in ("begin", "step", "encode", "place")))


def _peaks(crowd: Crowd, where: Place) -> Hardware:
    """What a process of the run reaches, while as many as there will be try."""
    members = 1 if where.gpu else min(crowd.size, where.concurrent * where.workers)
    found = crowd.ask("peaks", None, [], threads=where.threads, patience=10.0, members=members,
                      device="cuda" if where.gpu else "cpu")  # fmt: skip
    name = where.on.name if where.gpu else "cpu"
    return Hardware(name, found["title"], found["flops"], found["bandwidth"], found["memory"], measured=True)


def _scaled(sheet: Rates, measured: Rates, its_sheet: Rates) -> Rates:
    """The rates of a configuration that time did not reach for, from those of one that it did: by what was counted."""
    if its_sheet.step.seconds and sheet.step.seconds:
        ratio = measured.step.seconds / its_sheet.step.seconds
    else:
        one, other = (sum(t.step.seconds for t in rates.transfers.values()) for rates in (measured, its_sheet))
        ratio = one / other if other else 1.0

    def scale(cost: Cost) -> Cost:
        return replace(cost, seconds=cost.seconds * ratio)

    transfers = {key: TransferRates(*map(scale, (one.begin, one.step, one.encode, one.place)))
                 for key, one in sheet.transfers.items()}  # fmt: skip
    return replace(
        sheet, start=measured.start, step=scale(sheet.step), place=scale(sheet.place), probe=scale(sheet.probe),
        passes=measured.passes, checkpoint=scale(sheet.checkpoint), finish=scale(sheet.finish), first=scale(sheet.first),
        transfers=transfers, reader=measured.reader, storage=measured.storage,
        notes=("some configurations were scaled from a measured one by their counted work: --seconds did not reach for all",),
    )  # fmt: skip


def _with_reader(found: dict[str, Rates], config: RunConfig, store: PatchStore, seconds: float) -> dict[str, Rates]:
    """The rates with this machine's reading: what feeds a GPU may be at hand before the GPU is."""
    if not config.pretraining.trains:
        return found
    try:
        with Crowd(1) as crowd:
            read = crowd.ask(
                "reading", config.model_dump(mode="json"), [store], threads=1, patience=20.0, seconds=seconds
            )
    except Unmeasured:
        return found
    return {key: _reads(one, read) for key, one in found.items()}


def _reads(rates: Rates, read: dict[str, float]) -> Rates:
    if read["reader"]:
        rates = replace(rates, reader=read["reader"], reader_how="measured")
    if read["storage"]:
        rates = replace(rates, storage=read["storage"], storage_how="measured")
    return rates
