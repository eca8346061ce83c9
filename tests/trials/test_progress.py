"""What a sweep says of the trials that run, and of the time that is left."""

import json
import re

import pytest

from cromss.trials import progress
from cromss.trials.progress import Progress, done_of


def put(out, key, status, log=None, **more):
    folder = out / "trials" / key
    folder.mkdir(parents=True, exist_ok=True)
    record = {"key": key, "arm": "midF", "seed": 0, "status": status, "reason": "", "parameters": {"optim.lr": 0.1}}
    (folder / "trial.json").write_text(json.dumps(record | more))
    if log is not None:
        (folder / "progress.log").write_text(log)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("log", "done"),
    [
        ("epoch 1  step 3/12  loss 1.0\nepoch 2  step 6/12  loss 0.9\n", 0.5),
        ("resuming at step 6 from step-000000006\n", 0.0),
        ("x" * 5000 + "\nepoch 9  step 9/12  loss 0.9\n", 0.75),
        ("", 0.0),
    ],
)
def test_a_trial_has_done_what_the_last_step_of_its_log_says(tmp_path, log, done):
    (tmp_path / "log").write_text(log)
    assert done_of(tmp_path / "log") == done
    assert done_of(tmp_path / "absent") == 0.0


def test_every_trial_that_runs_is_named_and_the_time_left_counts_what_it_has_done(tmp_path, clock, capsys):
    """After 60 s one trial of four has ended, one is at its half, one has just begun: 1.5 of 4 trials, so 100 s are left."""
    shown = Progress(tmp_path, 4)
    put(tmp_path, "a", "done", downstream=[])
    put(tmp_path, "b", "running", "epoch 2  step 6/12")
    put(tmp_path, "c", "running", seed=1)
    clock.now += 60
    shown._tell()
    assert "[1/4] midF seed 0 lr=0.1 mIoU   60 s, ETA 100 s" in capsys.readouterr().out
    shown._tell_of_those_that_run()
    assert (
        capsys.readouterr().out == "[1/4] running: midF seed 0 lr=0.1 50 %, midF seed 1 lr=0.1 0 %  60 s, ETA 100 s\n"
    )


def test_what_was_finished_before_is_not_counted_into_the_rate(tmp_path, clock, capsys):
    """Two of four were there: one more in 60 s leaves one, 60 s."""
    for key in "ab":
        put(tmp_path, key, "done", downstream=[])
    shown = Progress(tmp_path, 4)
    put(tmp_path, "c", "failed", reason="lost")
    clock.now += 60
    shown._tell()
    assert "[3/4] midF seed 0 lr=0.1 FAILED: lost  60 s, ETA 60 s" in capsys.readouterr().out


def test_nothing_done_yet_promises_nothing_and_many_are_summed_up(tmp_path, clock, capsys):
    shown = Progress(tmp_path, 20)
    shown._tell_of_those_that_run()
    assert capsys.readouterr().out == "[0/20] none has begun  0 s, ETA unknown\n"
    for number in range(9):
        put(tmp_path, f"t{number}", "running", seed=number)
    shown._tell()
    shown._tell_of_those_that_run()
    said = capsys.readouterr().out
    assert len(re.findall("seed", said)) == 6
    assert "and 3 more  0 s, ETA unknown" in said
