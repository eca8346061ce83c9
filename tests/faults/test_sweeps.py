"""What happens to sweeps: their driver is killed, a trial's loss explodes, every tenth of 200 fails."""

import hashlib
import json
import re
import signal
import sys
import time
from pathlib import Path

import instant_sweep
import numpy as np
import psutil
import pytest
from scipy.stats import theilslopes
from stage import STEPS, Fault, Process, Rows, configuration, newest_step, planned, resumed_at, until, verb

from cromss.journal import read_trials

ALONE = {"scaling": {"num_workers": 0}}
RATES = '"""Which rate?"""\n\n\ndef space():\n    return {{"optim": {{"lr": {{"grid_search": {rates}}}}}}}\n'


def sweep(tmp_path: Path, rates: list[float], stores: tuple[Path, Path], config: Path) -> list[str]:
    """The command of a sweep over these learning rates."""
    (tmp_path / "rates.py").write_text(RATES.format(rates=rates))
    data, downstream = stores
    where = ["--data", data, "--downstream", downstream, "--out", tmp_path / "out"]
    return verb("sweep", tmp_path / "rates.py", *where, "--config", config)


@pytest.mark.timeout(120)
def test_a_loss_that_is_not_finite_fails_its_trial_by_name_and_the_sweep_goes_on(
    worlds, tmp_path, joined, started, experiment
):
    config = configuration(tmp_path / "config.yaml", ALONE, {"optim": {"epochs": 2}})
    run = started(Process(sweep(tmp_path, [1e30, 2e-3], worlds, config), tmp_path / "log", joined))
    assert run.wait(90) == 0, run.said
    trials = {trial["parameters"]["optim.lr"]: trial for trial in read_trials(tmp_path / "out")}
    failed, done = trials[1e30], trials[2e-3]
    step = int((re.match(r"step (\d+): the loss is not finite", failed["reason"]) or [0, -1])[1])
    plan = planned(worlds[0], config)
    rows = Rows.of(done["folder"], plan)
    experiment(
        11, "NaN loss in one trial of a sweep", "fails with its reason within two steps; the sweep goes on",
        {"not finite at step": step, "last step begun": newest_step(failed["folder"]), **rows.measured},
        failed["status"] == "failed" and 0 <= step <= 2 and newest_step(failed["folder"]) <= step + 1
        and done["status"] == "done" and rows.lost == rows.wrong == 0,
    )  # fmt: skip


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_sweep_whose_driver_is_killed_goes_on_and_repeats_no_finished_trial(
    store, worlds, tmp_path, started, experiment
):
    out, config = tmp_path / "out", configuration(tmp_path / "config.yaml", ALONE, {"optim": {"epochs": 10}})
    command = sweep(tmp_path, [1e-3, 2e-3, 3e-3, 4e-3], (store, worlds[1]), config)
    run = started(Process(command, tmp_path / "log"))

    def under_way() -> bool:
        """A trial is done, and another one has a checkpoint and is in the middle of an epoch."""
        trials = read_trials(out)
        going = [newest_step(trial["folder"]) for trial in trials if trial["status"] == "running"]
        return any(t["status"] == "done" for t in trials) and any(s > STEPS and 8 < s % STEPS < 24 for s in going)

    until(under_way, 200, "a finished trial beside one under way", run)
    run.kill()
    trials = read_trials(out)
    done = {trial["key"]: _print_of(trial["folder"]) for trial in trials if trial["status"] == "done"}
    begun = [trial["folder"] for trial in trials if trial["status"] == "running" and newest_step(trial["folder"]) >= 0]
    saved = [folder for folder in begun if list(folder.glob("checkpoints/step-*"))]
    fault = Fault.now(*begun)
    again = started(Process(command, tmp_path / "log"))
    back = fault.recovered(120, again)
    assert again.wait(200) == 0, again.said
    trials = read_trials(out)
    plan = planned(store, config)
    rows = [Rows.of(trial["folder"], plan) for trial in trials]
    resumed = sum(len(resumed_at(folder)) for folder in begun)
    experiment(
        4, "driver SIGKILL of a sweep, the same command again",
        "finished trials are not repeated, the others go on from their checkpoints",
        {"back after, s": back, "finished trials repeated": sum(_print_of(out / "trials" / k) != p for k, p in done.items()),
         "went on from their checkpoints": f"{resumed} of {len(saved)}", "steps repeated": sum(one.repeated for one in rows),
         "rows lost": sum(one.lost for one in rows), "rows wrong": sum(one.wrong for one in rows)},
        [trial["status"] for trial in trials] == ["done"] * 4
        and done == {key: _print_of(out / "trials" / key) for key in done}
        and resumed == len(saved) > 0
        and all(one.lost == one.wrong == 0 and one.repeated <= STEPS for one in rows),
    )  # fmt: skip


@pytest.mark.faults
@pytest.mark.timeout(400)
def test_sigterm_ends_a_sweep_with_its_trials_checkpoints_written(store, worlds, tmp_path, started, experiment):
    never = {
        "scaling": {"checkpoint_epochs": 1000},
        "optim": {"epochs": 12},
        "probe": {"every": 12},
    }  # but for the signal
    out, config = tmp_path / "out", configuration(tmp_path / "config.yaml", ALONE, never)
    command = sweep(tmp_path, [1e-3, 2e-3, 3e-3], (store, worlds[1]), config)
    run = started(Process(command, tmp_path / "log"))
    until(lambda: sum(newest_step(t["folder"]) >= STEPS // 2 for t in read_trials(out)) == 2, 120, "two trials", run)
    asked = run.kill(signal.SIGTERM)
    status = run.wait(60)
    left = time.time() - asked
    begun = [trial["folder"] for trial in read_trials(out) if newest_step(trial["folder"]) >= 0]
    statuses = {trial["status"] for trial in read_trials(out)}
    fault = Fault.now(*begun)
    again = started(Process(command, tmp_path / "log"))
    back = fault.recovered(120, again)
    assert again.wait(200) == 0, again.said
    plan = planned(store, config)
    rows = [Rows.of(trial["folder"], plan) for trial in read_trials(out)]
    experiment(
        12.5, "SIGTERM to cromss.sweep, 2 trials under way", "as for cromss.pretrain, every trial",
        {"left after, s": left, "exit status": status, "back after the command, s": back,
         "rows lost": sum(one.lost for one in rows), "rows wrong": sum(one.wrong for one in rows),
         "steps repeated": sum(one.repeated for one in rows)},
        status == 143 and left < 30 and statuses == {"running"} and len(rows) == 3
        and all(one.lost == one.wrong == one.repeated == 0 for one in rows)
        and all(len(resumed_at(folder)) == 1 for folder in begun)
        and {trial["status"] for trial in read_trials(out)} == {"done"},
    )  # fmt: skip


def _print_of(folder: Path) -> tuple[str, int]:
    """What would change if the trial was touched: what its record says, and when it was written."""
    record = folder / "trial.json"
    return hashlib.sha256(record.read_bytes()).hexdigest(), record.stat().st_mtime_ns


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_of_200_trials_every_tenth_fails_and_the_others_are_ranked_in_flat_memory(
    worlds, tmp_path, started, experiment
):
    out = tmp_path / "out"
    program = Path(instant_sweep.__file__)
    run = started(Process([sys.executable, str(program), *map(str, worlds), str(out)], tmp_path / "log"))
    samples = []  # (trials ended, MiB resident in the driver)
    driver = psutil.Process(run.pid)
    while run.runs and "RAN" not in run.said:
        if (ended := _ended(out)) and (not samples or ended > samples[-1][0]):
            samples.append((ended, driver.memory_info().rss / 2**20))
        time.sleep(0.1)
    assert run.wait(200) == 0, run.said
    (tmp_path / "memory.json").write_text(json.dumps(samples))

    trials = read_trials(out)
    failed = {
        instant_sweep.number(t["config"]["optim"]["lr"], t["seed"]): t["reason"]
        for t in trials
        if t["status"] == "failed"
    }
    named = failed == {trial: instant_sweep.reason(trial) for trial in range(200) if instant_sweep.fails(trial)}
    done = sum(trial["status"] == "done" for trial in trials)

    def own_mean(rate: int) -> float:
        """By hand: the mean over the seeds that are left of the mean over the modalities."""
        left = [n for n in range(4 * rate, 4 * rate + 4) if not instant_sweep.fails(n)]
        return float(np.mean([[instant_sweep.score(n, m) for m in ("s1", "s2")] for n in left]))

    order = sorted(range(instant_sweep.RATES), key=lambda rate: -own_mean(rate))
    expected = [(place, rate, f"{100 * own_mean(rate):.1f}") for place, rate in enumerate(order, 1)]
    printed = re.findall(r"^\| (\d+) +\| \S+ \[lr=([\d.]+)\] .*\| +([\d.]+) ± [\d.]+ \| +\d x 1 \|$", run.said, re.M)
    ranked = [(int(place), round(1e4 * float(rate)) - 1, mean) for place, rate, mean in printed]
    right = sum(one == own for one, own in zip(ranked, expected, strict=False))

    first, second = ([one for one in samples if low <= one[0] <= low + 100] for low in (0, 100))
    growth, later = (_growth(half) for half in (first, second))
    experiment(
        15, "a failure in every tenth of 200 instant trials",
        "180 done, 20 failed with their reasons, the ranking right, the driver's memory flat",
        {"done": done, "failed with its reason": named and len(failed), "rows ranked as by hand": f"{right} of {len(ranked)}",
         "driver grows by, MiB a trial": growth, "in the second half by, MiB": later,
         "to at most, MiB": max(mib for _, mib in samples)},
        done == 180 and len(failed) == 20 and named and right == len(ranked) == 40 and growth < 2 and later < 0.15,
    )  # fmt: skip


def _growth(samples: list[tuple[int, float]]) -> float:
    """MiB a trial: the median slope between any two looks, which one copy to MLflow or one collection of garbage does not
    decide. What the sweep remembers of a trial is measured by `bench sweep`: 0.15 MiB."""
    ended, resident = zip(*samples, strict=True)
    return float(theilslopes(resident, ended)[0])


def _ended(out: Path) -> int:
    """How many trials have ended, by the sweep's own ledger."""
    ledger = out / "spending.jsonl"
    return ledger.read_text().count('"end"') if ledger.exists() else 0
