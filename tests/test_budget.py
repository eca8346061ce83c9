"""What a sweep may spend: estimated, agreed to, counted over all its attempts, and kept."""

import io
import json
import threading
import time
from dataclasses import dataclass

import pytest
from tiny import TINY

from cromss.journal import read_trials, write_json
from cromss.leaving import Left, ask
from cromss.report import render
from cromss.settings import overlay
from cromss.sweep import SPENDING, SWEEP, NotAgreed, announce, conclude, main, perform, prepare, sweep
from cromss.trials import spending as module
from cromss.trials.consent import Limit, agreed, spending, told
from cromss.trials.space import Space, grid
from cromss.trials.spending import BEAT, CUT, Ledger, is_cut, is_left, spent
from cromss.trials.trial import record_of
from cromss.trials.work import Work


@dataclass
class Clock:
    """A clock that a test sets; it stands for `time` in the ledger."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@dataclass(frozen=True)
class Guess:
    """An estimate that a test chooses."""

    device_hours: float

    def lines(self):
        return [f"{self.device_hours:g} hours"]


# --- the count ----------------------------------------------------------------------------------------------------------


def test_hours_are_devices_times_the_time_that_trials_hold_them(tmp_path, clock):
    ledger = Ledger(tmp_path / "s", devices=4, unit="GPU-hours")
    ledger.start("a")
    clock.now += 1800
    ledger.start("b")  # from here on two trials of four GPUs
    clock.now += 900
    ledger.end("a")
    ledger.end("a")  # said twice, counted once
    clock.now += 900
    assert ledger.hours == pytest.approx(4 * 0.5 + 8 * 0.25 + 4 * 0.25)
    ledger.close()
    clock.now += 3600  # nobody holds anything
    assert ledger.hours == pytest.approx(5)
    assert spent(tmp_path / "s", "GPU-hours") == pytest.approx(5)


def test_a_killed_driver_leaves_at_most_a_beat_uncounted_and_the_next_attempt_adds_to_it(tmp_path, clock):
    killed = Ledger(tmp_path / "s", devices=3600, unit="core-hours")  # an hour's worth a second
    killed.start("a")
    for _ in range(95):
        clock.now += 1
        killed.beat()
    del killed
    known = spent(tmp_path / "s", "core-hours")
    assert 95 - BEAT <= known <= 95
    clock.now += 5000  # between the attempts nothing is held
    again = Ledger(tmp_path / "s", devices=3600, unit="core-hours", cap=known + 10)
    again.start("a")
    clock.now += 9
    assert not again.exhausted
    clock.now += 1
    assert again.exhausted
    assert again.hours == pytest.approx(known + 10)


def test_a_torn_line_is_skipped_and_other_devices_are_another_count(tmp_path, clock):
    path = tmp_path / "s"
    for unit in ("GPU-hours", "core-hours"):
        ledger = Ledger(path, devices=2, unit=unit)
        ledger.start("a")
        clock.now += 3600
        ledger.close()
    with path.open("a") as file:
        file.write('{"time": 99, "he')
    assert spent(path, "GPU-hours") == pytest.approx(2)
    assert spent(path, "core-hours") == pytest.approx(2)
    assert spent(tmp_path / "none", "GPU-hours") == 0


def test_a_ledger_that_cannot_be_written_counts_on_and_writes_later(tmp_path, clock, caplog):
    path = tmp_path / "folder" / "s"
    ledger = Ledger(path, devices=1, unit="GPU-hours")
    ledger.start("a")
    clock.now += 1800
    ledger.beat()
    assert len(caplog.records) == 1
    path.parent.mkdir()
    clock.now += 1800
    ledger.close()
    assert ledger.hours == pytest.approx(1)
    assert spent(path, "GPU-hours") == pytest.approx(1)


# --- the question -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "before", "said"),
    [
        (2.0, 0.0, "the estimate of 2 GPU-hours fits: all 12 trials"),
        (8.0, 0.0, "the estimate of 8 GPU-hours does not fit: about 6 of 12 trials"),
        (8.0, 2.0, "about 3 of 12 trials"),  # two of the four hours are left
    ],
)
def test_the_estimate_is_held_against_what_is_left(wanted, before, said):
    lines = told(Limit(4.0, price=2.5), Guess(wanted), 12, before, "GPU-hours")
    assert lines[0] == f"{wanted:g} hours"
    assert lines[1].startswith("budget: 4 GPU-hours (10.00 at 2.5 an hour)")
    assert said in lines[2]


@pytest.mark.parametrize(
    ("answer", "goes"), [("y\n", True), (" Yes\n", True), ("\n", False), ("n\n", False), ("", False)]
)
def test_only_a_yes_is_a_yes(answer, goes, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert agreed(Limit(1.0)) is goes
    assert agreed(Limit(1.0, yes=True))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--budget", "2"], "there is no terminal to ask on; add --yes"),
        (["--budget", "0", "--yes"], "--budget 0: must be a number of device-hours above 0"),
        (["--budget", "nan", "--yes"], "--budget nan: must be"),
        (["--budget", "1", "--price", "-1", "--yes"], "--price -1: must be"),
        (["--price", "3"], "--price 3: says what an hour costs, not how many; add --budget HOURS"),
    ],
)
def test_a_budget_that_cannot_be_agreed_on_costs_one_line_and_starts_nothing(arguments, said, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_first_line_says_what_was_spent_and_how_much_is_left():
    assert spending(0.5, "GPU-hours", None, 0, 9) == "spent 0.5 GPU-hours"
    capped = spending(2.004, "GPU-hours", Limit(2.0, 3.0), 5, 12)
    assert capped.startswith("spent 2 of 2 GPU-hours (6.01 at 3 an hour); 5 of 12 trials are left")
    assert spending(1.0, "GPU-hours", Limit(2.0), 0, 12).endswith("no trial is left")


# --- the cap ------------------------------------------------------------------------------------------------------------

SPACE = Space("rates", "Which rate?", {}, {"optim": {"lr": grid(1e-3, 2e-3, 3e-3, 4e-3)}}, "", 1)
# one process of two CPUs a trial: one at a time, so that it is known who runs when
BASE = overlay(TINY, {"scaling": {"num_workers": 0, "cpus_per_worker": 2.0}})


@pytest.fixture
def estimated(monkeypatch):
    monkeypatch.setattr("cromss.costs.estimate.of_sweep", lambda configs, *_, **__: Guess(float(len(configs))))


def _first_sleeps(path):
    """Trials whose first never reports, and keeps a task of its own busy; all that is real is the records."""

    def pretrain(config, setting, folder, key):
        import ray

        if config.optim.lr > 1e-3 or path.with_suffix(".awake").exists():
            return {"final": {}}

        def work():
            while True:
                path.write_text(str(time.time()))
                time.sleep(0.2)

        ray.get(ray.remote(num_cpus=0)(work).remote())

    def judge(config, setting, folder, key):
        return [{"modality": "s2", "mode": "frozen", "repeat": 0, "miou": 0.5, "oa": 0.5, "aa": 0.5}]

    return Work(pretrain, judge)


@pytest.mark.timeout(240)
def test_at_the_cap_trials_that_report_nothing_end_with_their_tasks_and_go_on_with_a_larger_budget(
    ray_session, worlds, tmp_path
):
    beat = tmp_path / "beat"
    work, out = _first_sleeps(beat), tmp_path / "out"
    out.mkdir()
    ready = prepare(SPACE, BASE, *worlds, out, work=work)
    assert (ready.setting.budget.devices, ready.setting.budget.unit) == (2.0, "core-hours")
    limit = Limit(2 * 8 / 3600)  # eight seconds of two cores
    ledger = Ledger(out / SPENDING, 2.0, "core-hours", limit.hours)
    announce(ready, ledger, limit)
    began = time.monotonic()
    perform(ready, ledger)
    assert time.monotonic() - began < 8 + 30 + 20  # the cap, its grace, the start of Tune and of a process
    assert limit.hours <= ledger.hours < limit.hours + 2 * 30 / 3600
    (cut,) = read_trials(out)  # the others have not begun
    assert (cut["status"], is_cut(cut)) == ("stopped", True)
    outcome = conclude(ready, ledger, limit)
    assert outcome["left"] == 4
    assert outcome["summary"].startswith(
        f"spent {ledger.hours:.3g} of {limit.hours:g} core-hours; 4 of 4 trials are left"
    )
    assert beat.exists()
    time.sleep(1)
    before = beat.read_text()
    time.sleep(1)
    assert beat.read_text() == before  # the trial's own task is dead, too

    beat.with_suffix(".awake").touch()
    ready = prepare(SPACE, BASE, *worlds, out, resume=True, work=work)
    spent_before = ledger.hours
    ledger = Ledger(out / SPENDING, 2.0, "core-hours", 1.0)
    assert ledger.hours == pytest.approx(spent_before, abs=1e-6)
    announce(ready, ledger, Limit(1.0))
    perform(ready, ledger)
    outcome = conclude(ready, ledger, Limit(1.0))
    assert [trial["status"] for trial in outcome["trials"]] == ["done"] * 4
    assert outcome["left"] == 0
    assert ledger.hours > spent_before
    assert "1 core-hours" in render(out)


@pytest.mark.timeout(280)
def test_a_trial_cut_in_training_goes_on_from_its_newest_checkpoint(ray_session, worlds, tmp_path):
    space = Space("one", "Which rate?", {}, {"optim": {"lr": grid(1e-3), "epochs": 4000}}, "", 1)

    def run_until(pattern, said, workers, resume):
        """Sweep with a cap that is met as soon as a file says so."""
        ready = prepare(space, overlay(TINY, {"scaling": {"num_workers": workers}}), *worlds, tmp_path, resume=resume)
        ledger = _ledger(ready)
        announce(ready, ledger)
        watch = threading.Thread(target=_cap_when, args=(ledger, tmp_path, pattern, said))
        watch.start()
        perform(ready, ledger)
        watch.join()
        (trial,) = read_trials(tmp_path)
        return trial

    trial = run_until("trials/*/checkpoints/step-*/manifest.json", "", 1, False)  # in a Ray Train worker
    assert is_cut(trial)
    seen = {path.name for path in (trial["folder"] / "checkpoints").glob("step-*")}
    trial = run_until("trials/*/progress.log", "resuming at step", 0, True)  # by itself, in the trial's own process
    assert is_cut(trial)
    (line,) = [line for line in (trial["folder"] / "progress.log").read_text().splitlines() if "resuming" in line]
    assert line.rpartition(" ")[2] in seen


def _cap_when(ledger, out, pattern, said):
    for _ in range(1200):
        if any(said in path.read_text() for path in out.glob(pattern)):
            break
        time.sleep(0.1)
    ledger.cap = 0.0


@pytest.mark.timeout(240)
def test_on_resume_what_the_budget_cut_runs_on_and_what_was_stopped_early_stays(ray_session, worlds, tmp_path):
    early = overlay(BASE, {"sweep": {"stopping": {"kind": "asha"}}})
    instant = Work(lambda *_: {"final": {}}, lambda *_: [])
    ready = prepare(SPACE, early, *worlds, tmp_path, work=instant)
    announce(ready, _ledger(ready))
    keys = list(ready.planned)
    for key, reason in zip(keys, ("stopped early: its probe was behind", f"{CUT}the cap was met"), strict=False):
        record = record_of(ready.planned[key], ready.setting) | {"status": "stopped", "reason": reason}
        write_json(tmp_path / "trials" / key / "trial.json", record | {"last": {"score": 0.1, "epoch": 1}})
    again = prepare(SPACE, early, *worlds, tmp_path, resume=True, work=instant)
    perform(again, _ledger(again))
    status = {trial["key"]: trial["status"] for trial in read_trials(tmp_path)}
    assert [status[key] for key in keys] == ["stopped", "done", "done", "done"]


def test_no_means_that_nothing_is_started(ray_session, worlds, tmp_path, estimated, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    with pytest.raises(NotAgreed):
        sweep(SPACE, BASE, *worlds, tmp_path, limit=Limit(1.0))
    said = capsys.readouterr().out
    assert "does not fit: about 1 of 4 trials will finish" in said  # a trial an hour
    assert said.endswith("Proceed? [y/N] ")
    assert not (tmp_path / SWEEP).exists()
    assert read_trials(tmp_path) == []


def test_a_budget_that_is_spent_is_refused_before_anything_is_estimated(ray_session, worlds, tmp_path):
    write_json(tmp_path / SWEEP, {})
    lines = [{"time": at, "held": 2, "unit": "core-hours", "event": "beat", "attempt": "x"} for at in (0, 3600)]
    (tmp_path / SPENDING).write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="--budget 2: 2 core-hours are spent already; name more to go on"):
        sweep(SPACE, BASE, *worlds, tmp_path, resume=True, limit=Limit(2.0, yes=True))


def test_a_running_record_and_a_cut_one_are_left_an_early_stop_is_not():
    assert is_left({"status": "running", "reason": ""})
    assert is_left({"status": "stopped", "reason": f"{CUT}x"})
    assert not is_left({"status": "stopped", "reason": "stopped early: its probe was behind"})
    assert not is_left({"status": "failed", "reason": f"{CUT}x"})


def _ledger(ready):
    return Ledger(ready.out / SPENDING, ready.setting.budget.devices, ready.setting.budget.unit)


@pytest.mark.timeout(280)
def test_a_sweep_that_is_asked_to_leave_waits_for_checkpoints_starts_nothing_and_goes_on(ray_session, worlds, tmp_path):
    """One trial at a time: the first is in training when SIGTERM comes, the second never begins."""
    space = Space("two", "Which rate?", {}, {"optim": {"lr": grid(1e-3, 2e-3), "epochs": 4000}}, "", 1)
    base = overlay(TINY, {"scaling": {"num_workers": 0, "cpus_per_worker": 2.0, "checkpoint_epochs": 4000},
                          "probe": {"every": 4000}})  # fmt: skip
    watch = threading.Thread(target=_ask_when_it_trains, args=(tmp_path,))
    watch.start()
    with pytest.raises(Left, match="SIGTERM: left; the same command goes on"):
        sweep(space, base, *worlds, tmp_path)
    watch.join()
    (trial,) = read_trials(tmp_path)
    assert (trial["status"], is_left(trial)) == ("running", True)
    (kept,) = (trial["folder"] / "checkpoints").glob("step-*")  # of no epoch's end: the one it left with
    assert not (tmp_path / "report.html").exists()

    ready = prepare(space, base, *worlds, tmp_path, resume=True)
    ledger = _ledger(ready)
    announce(ready, ledger)
    watch = threading.Thread(target=_cap_when, args=(ledger, tmp_path, "trials/*/progress.log", "resuming at step"))
    watch.start()
    perform(ready, ledger)
    watch.join()
    assert f"from {kept.name}" in (trial["folder"] / "progress.log").read_text()


def _ask_when_it_trains(out):
    for _ in range(1200):
        if any("epoch 2" in path.read_text() for path in out.glob("trials/*/progress.log")):
            break
        time.sleep(0.1)
    ask(out, "SIGTERM")
