"""Trials without work: what a sweep costs by itself, beside the same number of trials of bare Ray Tune.

Everything is the sweep's own: planned, validated, scheduled, recorded, ranked, reported, tracked. Only what lies between
the records of a trial takes no time.
"""

import random
import time
from pathlib import Path
from typing import Any

import psutil

from cromss.config import PRESETS, RunConfig, resolve
from cromss.journal import Journal
from cromss.landcover import DYNAMIC_WORLD
from cromss.settings import overlay
from cromss.sweep import SPENDING, Prepared, announce, conclude, perform, prepare
from cromss.transfer import runs_of
from cromss.trials.resources import budget
from cromss.trials.space import Space, grid
from cromss.trials.spending import Ledger
from cromss.trials.trial import Setting
from cromss.trials.work import Work

ARMS = ("midF", "CromSS-midF")
SEEDS = 4  # of each configuration
BASE = overlay(PRESETS["demo"], {"sweep": {"seeds": SEEDS}})


def pretrained(config: RunConfig, setting: Setting, folder: Path, key: str) -> dict[str, Any]:
    """A pretraining that took no time: an epoch's line for each epoch in the journal, final metrics."""
    drawn = random.Random(key)
    with Journal(folder / "journal", key) as journal:
        journal.log(1, {"train/loss": drawn.random(), "val/loss": drawn.random()}, epoch=config.optim.epochs)
    final = {f"probe/{name}/miou": 0.3 + 0.1 * drawn.random() for name in (*config.judged_modalities, "mean")}
    return {"final": final, "noise": None, "seconds": 0.0, "steps": 1}


def judged(config: RunConfig, setting: Setting, folder: Path, key: str) -> list[dict[str, Any]]:
    """Downstream results of the usual shape, drawn at random."""
    drawn, classes = random.Random(key), list(DYNAMIC_WORLD.classes)
    results = []
    for run in runs_of(config):
        iou = [drawn.random() for _ in classes]
        scores = {"miou": sum(iou) / len(iou), "oa": drawn.random(), "aa": drawn.random(), "iou": iou}
        confusion = [[drawn.randrange(1000) for _ in classes] for _ in classes]
        results.append(
            {"modality": run.modality, "mode": run.mode, "repeat": run.repeat, "head": config.transfer.head.kind,
             "scheme": DYNAMIC_WORLD.name, "classes": classes, "confusion": confusion, "seconds": 0.0} | scores
        )  # fmt: skip
    return results


INSTANT = Work(pretrain=pretrained, judge=judged)


def space_of(trials: int) -> Space:
    """`trials` trials: two arms, four seeds, as many learning rates as that takes. Raises ValueError for other counts."""
    each = len(ARMS) * SEEDS
    if trials < each or trials % each:
        raise ValueError(f"--trials {trials}: must be a multiple of {each} ({len(ARMS)} arms x {SEEDS} seeds)")
    rates = [1e-4 * (1 + number) for number in range(trials // each)]
    params = {"arm": grid(*ARMS), "optim": {"lr": grid(*rates)}}
    return Space("instant", "What does a sweep cost by itself?", {}, params, "", 1)


def ours(trials: int, data: str, downstream: str, out: Path) -> dict[str, float]:
    """Seconds of each part of a sweep of instant trials on the connected cluster, and the driver's memory."""
    space, before, began = space_of(trials), _resident(), time.perf_counter()
    ready = prepare(space, BASE, data, downstream, out, work=INSTANT)
    planned = time.perf_counter()
    ledger = _ledger(ready)
    announce(ready, ledger)
    announced = time.perf_counter()
    perform(ready, ledger)
    ran = time.perf_counter()
    outcome = conclude(ready, ledger)
    done = sum(trial["status"] == "done" for trial in outcome["trials"])
    assert done == trials, f"{done} of {trials} trials are done"
    return {"plan": planned - began, "announce": announced - planned, "run": ran - announced,
            "rank, report, track": time.perf_counter() - ran} | _memory(before)  # fmt: skip


def bare(trials: int, out: Path) -> dict[str, float]:
    """As many trials of Ray Tune that report one number, holding what ours hold, as many at a time."""
    import ray
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        tune.report({"score": config["number"]})

    total = ray.cluster_resources()
    held = budget(resolve(BASE), total.get("CPU", 0), total.get("GPU", 0))
    before, began = _resident(), time.perf_counter()
    tuner = tune.Tuner(
        tune.with_resources(trial, held.trial),
        param_space={"number": tune.grid_search(list(range(trials)))},
        tune_config=tune.TuneConfig(
            metric="score", mode="max", max_concurrent_trials=held.concurrent, reuse_actors=True
        ),
        run_config=tune.RunConfig(name="bare", storage_path=str(out), verbose=0),
    )
    results = tuner.fit()
    assert len(results) == trials
    return {"run": time.perf_counter() - began} | _memory(before)


def _memory(before: float) -> dict[str, float]:
    """MiB of this process: resident before the sweep, at its highest, and at the end its proportional share."""
    pss = psutil.Process().memory_full_info().pss / 2**20
    return {"before MiB": before, "peak MiB": _peak(), "PSS MiB": pss}


def _ledger(ready: Prepared) -> Ledger:
    budget = ready.setting.budget
    return Ledger(ready.out / SPENDING, budget.devices, budget.unit)


def _resident() -> float:
    return psutil.Process().memory_info().rss / 2**20


def _peak() -> float:
    """MiB: the highest resident memory of this process so far, as the kernel counted it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return _resident()
    return next(float(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
