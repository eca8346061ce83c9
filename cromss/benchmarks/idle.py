"""Where the time of a small real sweep goes: how long its trials hold their devices, and how long those work.

Every number is taken from what a sweep leaves behind: ledger, records, journals.
"""

import json
import os
from pathlib import Path
from typing import Any

from cromss.config import PRESETS
from cromss.data.synthetic import SyntheticEarth
from cromss.journal import read_journal, read_trials
from cromss.settings import overlay
from cromss.sweep import SPENDING, announce, conclude, perform, prepare
from cromss.trials.space import Space, grid
from cromss.trials.spending import Ledger

EARTH = SyntheticEarth(places=96, train=32, test=32)
SPACE = Space("idle", "Where does the time go?", {}, {"arm": grid("midF", "CromSS-midF")}, "", 1)
BASE = overlay(PRESETS["demo"], {"sweep": {"seeds": 2}, "scaling": {"use_gpu": None}})
WORK = ("training steps", "validation, probe, checkpoints", "judging")  # what a device is there for
PARTS = {
    "start": "the process starts and imports",
    "opening": "stores opened, network built, twins looked for",
    "training steps": "without waiting for data",
    "data wait": "training waits for its next batch",
    "validation, probe, checkpoints": "and pictures, encoders, the first step's set-up",
    "judging": "downstream training and test",
    "around judging": "stores opened again, encoders looked up",
    "records": "written by the trial",
    "end": "the last report reaches Tune",
}


def real(data: str, downstream: str, out: Path, base: dict[str, Any] = BASE) -> dict[str, Any]:
    """Run four small trials on the connected cluster; seconds of each part, mean over the trials, and the idle shares.

    idle of held      share of the trials' device time in which no device computed
    idle of cluster   the same of all the sweep could have held from its first to its last trial
    """
    ready = prepare(SPACE, base, data, downstream, out)
    budget = ready.setting.budget
    ledger = Ledger(out / SPENDING, budget.devices, budget.unit)
    announce(ready, ledger)
    perform(ready, ledger)
    conclude(ready, ledger)
    times = times_of(out / SPENDING)
    trials = [trial for trial in read_trials(out) if trial["status"] == "done"]
    assert trials, "no trial is done"
    parts = [parts_of(trial, *times[trial["clock"]["attempt"]]) for trial in trials]
    held = sum(sum(one.values()) for one in parts)
    busy = sum(one[name] for one in parts for name in WORK)
    began, ended = min(start for start, _ in times.values()), max(end for _, end in times.values())
    possible = budget.concurrent * (ended - began)
    mean = {name: sum(one[name] for one in parts) / len(parts) for name in PARTS}
    return {"trials": len(trials), "concurrent": budget.concurrent, "devices": budget.devices, "unit": budget.unit,
            "wall": ended - began, "held": held, "busy": busy, "idle of held": 1 - busy / held,
            "idle of cluster": 1 - busy / possible, "parts": mean, "load": os.getloadavg()[0]}  # fmt: skip


def times_of(ledger: Path) -> dict[str, tuple[float, float]]:
    """When each trial of a ledger started and ended, in seconds since 1970."""
    found: dict[str, dict[str, float]] = {}
    for line in map(json.loads, ledger.read_text().splitlines()):
        if line["trial"]:
            found.setdefault(line["trial"], {})[line["event"]] = line["time"]
    return {trial: (at["start"], at["end"]) for trial, at in found.items() if len(at) == 2}


def parts_of(trial: dict[str, Any], start: float, end: float) -> dict[str, float]:
    """The seconds between `start` and `end` of a trial that worked in its own process, part by part; they sum up to it."""
    clock, batch = trial["clock"], trial["config"]["optim"]["batch_size"]
    entries = read_journal(trial["folder"] / "journal").get(trial["key"], [])
    steps = waited = 0.0
    before = 0
    for entry in entries:
        if rate := entry.metrics.get("perf/patches_per_s"):
            seconds = (entry.step - before) * batch / rate
            steps, waited, before = steps + seconds, waited + seconds * entry.metrics["perf/data_wait"], entry.step
    inside, judged = trial["pretraining"]["seconds"], sum(run["seconds"] for run in trial["downstream"])
    return {
        "start": clock["began"] - start,
        "opening": clock["pretraining"] - inside,
        "training steps": steps - waited,
        "data wait": waited,
        "validation, probe, checkpoints": inside - steps,
        "judging": judged,
        "around judging": clock["judging"] - judged,
        "records": trial["seconds"] - clock["pretraining"] - clock["judging"],
        "end": end - clock["began"] - trial["seconds"],
    }
