"""What a sweep costs by itself is measured on the real thing: no part left out, no second counted twice."""

import json

import fake_out
import pytest
from tiny import TINY

from cromss import tracking
from cromss.benchmarks.idle import PARTS, parts_of, real, times_of
from cromss.benchmarks.instant import bare, ours, space_of
from cromss.benchmarks.sweep import SECONDS, beyond, draw, growth, margin, report, sizes
from cromss.journal import Journal, read_trials
from cromss.settings import overlay
from cromss.tracking import Sink
from cromss.trials.progress import Progress
from cromss.trials.space import variants


def test_a_tenth_three_tenths_and_all_are_measured():
    assert sizes(1000) == [96, 304, 1000]
    assert sizes(40) == [8, 16, 40]
    assert sizes(8) == [8]
    for trials in (0, 7, 1001):
        with pytest.raises(ValueError, match="--trials .*: must be a multiple of 8"):
            sizes(trials)


def test_the_space_has_as_many_trials_as_were_asked_for():
    space = space_of(40)
    assert 4 * len(variants(space.params, 1)) == 40  # four seeds of each
    with pytest.raises(ValueError, match="--trials 41: must be a multiple of 8"):
        space_of(41)


@pytest.mark.timeout(240)
def test_instant_trials_go_through_the_whole_of_a_sweep(ray_session, worlds, tmp_path):
    found = ours(8, *map(str, worlds), tmp_path)
    trials = read_trials(tmp_path)
    assert [trial["status"] for trial in trials] == ["done"] * 8
    assert {trial["arm"] for trial in trials} == {"midF", "CromSS-midF"}
    assert all(trial["final"] and trial["downstream"] and trial["clock"]["judging"] >= 0 for trial in trials)
    assert "CromSS-midF" in (tmp_path / "report.html").read_text()
    from mlflow import MlflowClient

    client = MlflowClient(tracking.tracking_uri(tmp_path))
    runs = client.search_runs([client.get_experiment_by_name("cromss").experiment_id])
    kinds = [run.data.tags.get("cromss.kind", "sweep") for run in runs]
    assert {kind: kinds.count(kind) for kind in kinds} == {"sweep": 1, "trial": 8, "downstream": 16, "configuration": 2}
    assert all(found[part] > 0 for part in SECONDS)
    assert found["peak MiB"] >= found["before MiB"] > 0
    assert len(times_of(tmp_path / "spending.jsonl")) == 8


@pytest.mark.timeout(120)
def test_bare_tune_runs_as_many(ray_session, tmp_path):
    found = bare(4, tmp_path)
    assert len(list((tmp_path / "bare").glob("trial_*"))) == 4
    assert found["run"] > 0


def test_the_parts_of_a_trial_are_told_apart_and_sum_up_to_what_it_held(tmp_path):
    with Journal(tmp_path / "journal", "k") as journal:  # two epochs of ten steps of four
        journal.log(10, {"perf/patches_per_s": 4.0, "perf/data_wait": 0.25})  # 10 s, a quarter of it waiting
        journal.log(20, {"perf/patches_per_s": 8.0, "perf/data_wait": 0.0})  # 5 s
    trial = {
        "folder": tmp_path, "key": "k", "config": {"optim": {"batch_size": 4}}, "seconds": 31.0,
        "clock": {"began": 102.0, "pretraining": 20.0, "judging": 10.0}, "pretraining": {"seconds": 18.0},
        "downstream": [{"seconds": 4.0}, {"seconds": 5.0}],
    }  # fmt: skip
    parts = parts_of(trial, 100.0, 134.0)
    assert parts == pytest.approx(
        {"start": 2, "opening": 2, "training steps": 12.5, "data wait": 2.5, "validation, probe, checkpoints": 3,
         "judging": 9, "around judging": 1, "records": 1, "end": 1}
    )  # fmt: skip
    assert sum(parts.values()) == pytest.approx(34)
    assert parts.keys() == PARTS.keys()


def test_the_ledger_says_when_a_trial_started_and_ended(tmp_path):
    lines = [("start", "a", 1.0), ("start", "b", 2.0), ("beat", "", 3.0), ("end", "a", 4.0)]
    text = "\n".join(json.dumps({"event": event, "trial": trial, "time": at}) for event, trial, at in lines)
    (tmp_path / "s").write_text(text)
    assert times_of(tmp_path / "s") == {"a": (1.0, 4.0)}  # b was killed with its driver


@pytest.mark.timeout(240)
def test_a_real_sweep_is_split_into_work_and_waiting(ray_session, worlds, tmp_path):
    base = overlay(TINY, {"scaling": {"num_workers": 0}, "optim": {"epochs": 2}})
    found = real(*map(str, worlds), tmp_path, base)
    assert found["trials"] == 2
    assert sum(found["parts"].values()) * 2 == pytest.approx(found["held"])
    assert all(seconds > -0.05 for seconds in found["parts"].values())
    assert 0 < found["busy"] < found["held"] <= found["concurrent"] * found["wall"] * 1.001
    assert 0 < found["idle of held"] <= found["idle of cluster"] + 1e-6 < 1


def _found(exponent):
    """Numbers as of sweeps whose every part grows with that exponent; bare Tune takes a tenth of a second a trial."""
    trials = [10, 100, 1000]
    series = [dict.fromkeys(SECONDS, 1e-3 * n**exponent) | {"before MiB": 100.0} for n in trials]
    for one, n in zip(series, trials, strict=True):
        one |= {"run": 0.1 * n + 0.5 * n, "peak MiB": 100.0 + n / 10, "PSS MiB": 90.0}
    tune = [{"run": 0.1 * n, "before MiB": 100.0, "peak MiB": 120.0, "PSS MiB": 90.0} for n in trials]
    return {"cpus": 2, "gpus": 0, "load": 1.0, "instant": {"trials": trials, "ours": series, "bare": tune}}


def test_growth_and_overhead_are_the_numbers_own():
    found = _found(2)
    exponents = growth(found)
    assert exponents["plan"] == pytest.approx(2)
    assert exponents["run"] == pytest.approx(1)
    assert exponents["driver's memory"] == pytest.approx(1)
    own, whole = beyond(found, 1)
    assert own == pytest.approx(0.5)
    assert whole == pytest.approx(0.5 + 3 * 1e-3 * 100**2 / 100)
    added = margin(found)
    assert added["run"] == pytest.approx(600)  # ms
    assert added["memory"] == pytest.approx(102.4)  # KiB


def test_the_report_and_the_picture_show_every_size(tmp_path):
    found = _found(1)
    parts = dict.fromkeys(PARTS, 1.0)
    found["real"] = {"trials": 4, "concurrent": 2, "devices": 1.0, "unit": "core-hours", "wall": 20.0, "held": 36.0,
                     "busy": 12.0, "idle of held": 2 / 3, "idle of cluster": 0.7, "parts": parts, "load": 1.0}  # fmt: skip
    text = report(found)
    assert "0.500 s" in text
    assert "plan ~ trials^1.00" in text
    assert "devices idle: 66.7% of the time that trials held them, 70.0%" in text
    assert all(name in text for name in PARTS)
    draw(found, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


# --- what would grow with the square of the trials ----------------------------------------------------------------------


def test_only_records_that_changed_are_read_again(tmp_path):
    out = fake_out.make(tmp_path / "out", arms=("midF",), seeds=3, repeats=1, epochs=1, size=8)
    progress = Progress(out, 4)
    assert list(progress._changed()) == []
    path = out / "trials/midf-1/trial.json"
    path.write_text(path.read_text() + "\n")
    assert [trial["key"] for trial in progress._changed()] == ["midf-1"]


def test_a_run_costs_mlflow_three_requests_and_what_is_there_is_asked_for_once(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = fake_out.make(tmp_path / "out", arms=("midF",), seeds=3, repeats=1, epochs=1, size=8)
    client, calls = tracking._mlflow().MlflowClient, []

    def counted(name, real):
        def request(self, *args, **more):
            calls.append(name)
            return real(self, *args, **more)

        monkeypatch.setattr(client, name, request)

    for name in ("create_run", "log_batch", "set_terminated", "update_run", "set_tag", "search_runs"):
        counted(name, getattr(client, name))
    sink = Sink(out)
    assert sink.sync(final=True)
    runs = 1 + 4 + 3 * 2  # the sweep, its trials (one failed), their downstream runs
    assert {name: calls.count(name) for name in set(calls)} == {
        "create_run": runs, "log_batch": runs - 1, "set_terminated": runs
    }  # fmt: skip
    calls.clear()
    record = out / "trials/midf-1/trial.json"
    record.write_text(record.read_text() + "\n")  # looked at again, and nothing new in it
    assert sink.sync(final=True)
    assert calls == []
    assert Sink(out).sync(final=True)
    assert calls == ["search_runs"]
