import json
import logging
import statistics
import time
from pathlib import Path

import fake_out
import pytest

from cromss import tracking
from cromss.journal import Journal, read_journal
from cromss.tracking import Aggregate, Sink, open_ui_command, tracking_uri


@pytest.fixture(autouse=True)
def no_server_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/shared.db"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return fake_out.make(tmp_path / "out", arms=("random", "midF"), seeds=1, repeats=2, epochs=4, size=8)


def runs_of(sink: Sink) -> dict[str, object]:
    """Every run of a sink's folder, by its key."""
    client = tracking._mlflow().MlflowClient(tracking_uri=sink.uri)
    found = client.search_runs([client.get_experiment_by_name(sink.experiment).experiment_id], max_results=500)
    own = [run for run in found if run.data.tags["cromss.run"].startswith(sink._sent.id)]
    return {run.data.tags["cromss.run"].partition("/")[2]: run for run in own}


def history(sink: Sink, key: str, metric: str) -> list[tuple[int, float]]:
    client = tracking._mlflow().MlflowClient(tracking_uri=sink.uri)
    return [(m.step, m.value) for m in client.get_metric_history(runs_of(sink)[key].info.run_id, metric)]


def test_the_tree_is_sweep_trial_downstream_and_a_run_for_each_configuration(out: Path, store: str) -> None:
    sink = Sink(out, uri=store)
    mean = Aggregate({"test/s2/frozen/miou": 0.5, "test/s2/frozen/miou_std": 0.01}, {"arm": "midF"}, 3, 2)
    assert sink.sync({"midF": mean}, final=True)
    runs = runs_of(sink)
    parents = {key: run.data.tags.get("mlflow.parentRunId") for key, run in runs.items()}
    assert parents[""] is None
    assert parents["midf-0"] == parents["mean:midF"] == runs[""].info.run_id
    assert parents["midf-0/s2-frozen-1"] == runs["midf-0"].info.run_id
    assert len(runs) == 1 + 3 + 2 * 4 + 1  # sweep, trials (one failed), downstream runs, configuration
    assert runs["midf-0"].data.params["objective.alpha.ramp.kind"] == "exponential"
    assert runs["mean:midF"].data.metrics == mean.metrics | {"seeds": 3, "repeats": 2}
    assert [runs[key].info.status for key in ("", "midf-0", "midf-bad")] == ["FINISHED", "FINISHED", "FAILED"]
    assert runs["midf-bad"].data.tags["cromss.reason"].startswith("loss is nan")
    assert len(history(sink, "midf-0", "train/loss")) == 4
    repeats = [runs[f"midf-0/s2-frozen-{i}"].data.metrics["test/s2/frozen/miou"] for i in (0, 1)]
    assert runs["midf-0"].data.metrics["test/s2/frozen/miou"] == pytest.approx(sum(repeats) / 2)


def test_trials_say_where_they_come_from_and_what_they_cost(out: Path, store: str) -> None:
    sweep = json.loads((out / "sweep.json").read_text())
    (out / "sweep.json").write_text(
        json.dumps(sweep | {"sentence": "no difference: +0.1 points [-0.3, +0.5], 3 seeds"})
    )
    sink = Sink(out, uri=store)
    assert sink.sync()
    runs = runs_of(sink)
    tags, metrics = runs["midf-0"].data.tags, runs["midf-0"].data.metrics
    assert (tags["cromss.git"], tags["cromss.store"], tags["cromss.device"]) == ("9e73800c41f2", "sha256:91ab", "cpu")
    assert "torch 2.13.0" in tags["cromss.versions"]
    assert tags["cromss.folder"] == str(out / "trials/midf-0")
    clock = json.loads((out / "trials/midf-0/trial.json").read_text())["clock"]
    seconds = clock["pretraining"] + clock["judging"]
    assert metrics["cost/pretraining_s"] == pytest.approx(clock["pretraining"])
    assert metrics["cost/device_hours"] == pytest.approx(seconds / 3600)
    assert runs[""].data.tags["cromss.answer"].startswith("no difference")
    assert tracking.costs({"clock": {}}) == tracking.costs({}) == {}


def test_a_run_is_found_by_its_id_its_name_and_its_key(out: Path, store: str) -> None:
    sink = Sink(out, uri=store, experiment="finding")
    assert sink.sync()
    run = runs_of(sink)["random-0"]
    own = f"{sink._sent.id}/random-0"
    assert tracking.find_run(store, run.info.run_id).tags["cromss.run"] == own
    alone = f"sqlite:///{out}/alone.db"
    Sink(out, uri=alone).sync()
    named = [tracking.find_run(alone, name).tags["cromss.run"] for name in ("random seed 0", "random-0")]
    assert named == [own, own]
    with pytest.raises(ValueError, match="neither a folder nor the id or name of a run"):
        tracking.find_run(alone, "nobody")
    with pytest.raises(ValueError, match="runs at .* are called so"):
        tracking.find_run(alone, "midF seed 0") if Sink(_twin(out), uri=alone).sync() else None


def _twin(out: Path) -> Path:
    return fake_out.make(out.with_name("twin"), arms=("midF",), seeds=1, repeats=1, epochs=1, size=8, failed=False)


def test_a_configuration_has_its_interval_and_its_cost_and_names_nothing_else(out: Path) -> None:
    from cromss.journal import read_trials
    from cromss.trials.ranking import aggregates

    trials = read_trials(fake_out.make(out.with_name("three"), arms=("midF",), seeds=3, repeats=1, epochs=1, size=8))
    (found,) = aggregates(trials).values()
    scores = [sum(one["miou"] for one in trial["downstream"]) / 2 for trial in trials if trial["downstream"]]
    mean, reach = sum(scores) / 3, 4.30265 * statistics.stdev(scores) / 3**0.5  # Student's t, 2 degrees of freedom
    assert next(iter(found.metrics)) == "score/miou"
    assert found.metrics["score/miou_low"] == pytest.approx(mean - reach, abs=1e-6)
    assert found.metrics["score/miou_high"] == pytest.approx(mean + reach, abs=1e-6)
    assert found.metrics["cost/total_device_hours"] == pytest.approx(3 * found.metrics["cost/device_hours"])
    assert (found.params, found.seeds) == ({"arm": "midF"}, 3)


def test_sending_again_changes_nothing_whoever_sends(out: Path, store: str) -> None:
    assert Sink(out, uri=store).sync()
    before = set(runs_of(Sink(out, uri=store)))
    later = Sink(out, uri=store)
    assert later.sync()
    assert later.sync()
    assert set(runs_of(later)) == before
    assert [step for step, _ in history(later, "midf-0", "val/loss")] == [48, 96, 144, 192]


def test_steps_that_a_resume_repeats_are_sent_once(out: Path, store: str) -> None:
    sink = Sink(out, uri=store)
    sink.sync()
    with Journal(out / "trials/midf-0/journal", "midf-0") as resumed:
        for step in (144, 192, 240):
            resumed.log(step, {"val/loss": 1.0})
    sink.sync()
    assert [step for step, _ in history(sink, "midf-0", "val/loss")] == [48, 96, 144, 192, 240]


def test_after_a_death_in_mid_sending_the_server_is_asked_what_arrived(out: Path, store: str) -> None:
    Sink(out, uri=store).sync()
    path = out / "mlflow-sent.json"
    state = json.loads(path.read_text())
    for run in state[store].values():
        run.update(open=True, steps={})
    path.write_text(json.dumps(state))
    with Journal(out / "trials/midf-0/journal", "midf-0") as resumed:  # the same steps at a later time
        resumed.log(192, {"val/loss": 1.0})
    revived = Sink(out, uri=store)
    assert revived.sync()
    assert len(history(revived, "midf-0", "val/loss")) == 4


def test_an_outage_in_mid_sending_is_made_good(
    out: Path, store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "BATCH", 5)
    sink = Sink(out, uri=store)
    client = tracking._mlflow().MlflowClient
    send, calls = client.log_batch, []

    def fails_at_third(self, run_id, metrics=(), **rest):
        calls.append(len(metrics))
        if len(calls) == 6:
            raise ConnectionError("gone")
        return send(self, run_id, metrics=metrics, **rest)

    monkeypatch.setattr(client, "log_batch", fails_at_third)
    with caplog.at_level(logging.WARNING, "cromss"):
        assert not sink.sync()
        assert not sink.sync()  # it rests: nothing is tried
        assert len(calls) == 6
        assert sink.sync(final=True)
    assert max(calls) <= 5
    assert [len(record.message.splitlines()) for record in caplog.records] == [1, 1]  # gone; back
    for metric in ("val/loss", "train/alpha", "probe/s2/miou"):
        assert [step for step, _ in history(sink, "midf-0", metric)] == [48, 96, 144, 192]


def test_an_unreachable_server_costs_one_line_and_the_numbers_go_elsewhere_later(
    out: Path, store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:secret@127.0.0.1:9")
    begin = time.monotonic()
    sink = Sink(out)
    with caplog.at_level(logging.WARNING, "cromss"):
        assert not any(sink.sync() for _ in range(3))
        assert not sink.sync(final=True)
    assert time.monotonic() - begin < 20
    (record,) = caplog.records
    assert "http://127.0.0.1:9 cannot be reached" in record.message
    assert "secret" not in record.message + (out / "mlflow-sent.json").read_text()
    assert len(read_journal(out / "trials/midf-0/journal")["midf-0"]) == 4
    other = Sink(out, uri=store)
    assert other.sync()
    assert len(history(other, "midf-0", "train/loss")) == 4


def test_a_store_that_mlflow_refuses_is_a_warning_too(
    out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "cromss"):
        assert not Sink(out, uri="htp://nowhere").sync()
    assert len(caplog.records) == 1


def test_a_single_pretraining_is_a_run_of_its_own(out: Path, store: str) -> None:
    single = out / "trials/midf-0"
    sink = Sink(single, uri=store)
    assert sink.sync(final=True)
    runs = runs_of(sink)
    assert "mlflow.parentRunId" not in runs[""].data.tags
    assert runs["/s1-frozen-0"].data.tags["mlflow.parentRunId"] == runs[""].info.run_id
    assert len(history(sink, "", "train/loss")) == 4


def test_by_default_everything_lies_in_the_run_folder(
    out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    sink = Sink(out)
    assert sink.sync()
    assert sink.attach(out / "sweep.json")
    assert (out / "mlflow.db").exists()
    assert list(out.glob("mlartifacts/*/artifacts/sweep.json"))
    assert not list(elsewhere.iterdir())


def test_the_command_for_the_ui_names_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = open_ui_command(tmp_path / "a b")
    assert f"--backend-store-uri 'sqlite:///{tmp_path}/a b/mlflow.db' --host 127.0.0.1" in command
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:secret@mlflow.example/x")
    assert tracking_uri(tmp_path) == "https://ada:secret@mlflow.example/x"
    assert open_ui_command(tmp_path) == "open https://mlflow.example/x"
