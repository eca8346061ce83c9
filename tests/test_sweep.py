"""A whole sweep on exactly two logical CPUs: it ends, ranks, survives a failing trial, and repeats nothing."""

import json

import pytest
from tiny import TINY

from cromss.journal import read_trials
from cromss.settings import overlay
from cromss.sweep import main, sweep
from cromss.tracking import tracking_uri
from cromss.trials.space import Space, grid

ARMS = Space("arms", "Does it run?", {}, {"arm": grid("random", "CromSS-midF")}, "", 1)
RATES = Space("rates", "Which rate?", {}, {"optim": {"lr": grid(2e-3, 1e30)}}, "", 1)
BASE = overlay(TINY, {"optim": {"epochs": 2}})


@pytest.fixture(scope="module")
def swept(ray_session, worlds, tmp_path_factory):
    out = tmp_path_factory.mktemp("swept")
    first = sweep(ARMS, BASE, *worlds, out)
    return out, first


@pytest.mark.timeout(280)
def test_a_sweep_on_two_cpus_ends_with_a_ranking_a_report_and_its_runs_in_mlflow(swept):
    out, outcome = swept
    assert {trial["arm"]: trial["status"] for trial in outcome["trials"]} == {"random": "done", "CromSS-midF": "done"}
    assert "CromSS-midF" in outcome["summary"]
    assert outcome["report"].read_text().count("CromSS-midF") > 1
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(out))
    runs = client.search_runs([client.get_experiment_by_name("cromss").experiment_id], max_results=100)
    kinds = [run.data.tags.get("cromss.kind", "sweep") for run in runs]
    assert kinds.count("trial") == 2
    assert kinds.count("configuration") == 2
    trials = [run for run in runs if run.data.tags.get("cromss.kind") == "trial"]
    trained = next(run for run in trials if run.data.tags["cromss.arm"] == "CromSS-midF")
    assert len(client.get_metric_history(trained.info.run_id, "train/loss")) == 2


@pytest.mark.timeout(280)
def test_resuming_repeats_no_finished_trial_and_runs_the_missing_one(swept, worlds):
    out, outcome = swept
    kept, lost = outcome["trials"]
    before = (kept["folder"] / "trial.json").stat().st_mtime_ns
    record = json.loads((lost["folder"] / "trial.json").read_text())
    (lost["folder"] / "trial.json").write_text(
        json.dumps(record | {"status": "running", "downstream": []})
    )  # killed here
    again = sweep(ARMS, BASE, *worlds, out, resume=True)
    assert [trial["status"] for trial in again["trials"]] == ["done", "done"]
    assert (kept["folder"] / "trial.json").stat().st_mtime_ns == before
    assert again["trials"][1]["downstream"] == lost["downstream"]


@pytest.mark.timeout(280)
def test_a_trial_whose_loss_explodes_fails_by_name_and_the_sweep_goes_on(ray_session, worlds, tmp_path):
    outcome = sweep(RATES, BASE, *worlds, tmp_path)
    by_rate = {trial["parameters"]["optim.lr"]: trial for trial in outcome["trials"]}
    assert by_rate[2e-3]["status"] == "done"
    assert by_rate[1e30]["status"] == "failed"
    assert "the loss is not finite" in by_rate[1e30]["reason"]


def test_another_sweep_than_the_one_in_out_is_refused_by_what_differs_and_resume_needs_a_sweep(swept, worlds, tmp_path):
    out, _ = swept
    other = overlay(BASE, {"optim": {"lr": 5e-3}, "transfer": {"epochs": 7}, "scaling": {"num_workers": 2}})
    with pytest.raises(
        ValueError, match=r"another sweep \(optim.lr 0.002 -> 0.005, transfer.epochs 2 -> 7\); choose another"
    ):
        sweep(ARMS, other, *worlds, out)
    with pytest.raises(ValueError, match="another sweep .*downstream store .*pretraining store"):
        sweep(ARMS, BASE, *reversed(worlds), out)
    with pytest.raises(ValueError, match="holds no sweep"):
        sweep(ARMS, BASE, *worlds, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"scaling": {"num_workers": 4, "cpus_per_worker": 1.0}}, "scaling.num_workers=4.*the cluster has 2"),
        ({"scaling": {"use_gpu": True}}, "scaling.use_gpu=true: this cluster has no GPU"),
        ({"sweep": {"stopping": {"kind": "asha"}}}, "sweep.metric=mean: a trial of space arms has only"),
        ({"optim": {"batch_size": 800}}, "optim.batch_size=800"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(ray_session, worlds, tmp_path, layer, said):
    with pytest.raises(ValueError, match=said):
        sweep(ARMS, overlay(BASE, layer), *worlds, tmp_path)
    assert read_trials(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fusionn"], "did you mean 'fusion'?"),
        (["--data", "only-this"], "go together: give both, or neither"),
        (["--set", "optim.lrr=1"], "optim.lrr: unknown key; did you mean 'lr'?"),
        (["--data", "absent", "--downstream", "absent"], "absent"),
    ],
)
def test_a_mistake_on_the_command_line_costs_one_line_and_exit_2(arguments, said, capsys, tmp_path, ray_session):
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


ALONE = overlay(BASE, {"scaling": {"num_workers": 0}})


@pytest.mark.timeout(280)
def test_a_guided_search_spends_its_samples_and_confirms_the_best_with_the_other_seeds(ray_session, worlds, tmp_path):
    space = Space("search", "Which rate?", {}, {"optim": {"lr": _loguniform(1e-4, 1e-2)}}, "optuna", 2)
    outcome = sweep(space, overlay(ALONE, {"sweep": {"seeds": 2}}), *worlds, tmp_path, samples=2)
    seeds = [trial["seed"] for trial in outcome["trials"]]
    rates = {trial["seed"]: set() for trial in outcome["trials"]}
    for trial in outcome["trials"]:
        rates[trial["seed"]].add(trial["parameters"]["optim.lr"])
    assert sorted(seeds) == [0, 0, 1, 1]
    assert rates[0] == rates[1]
    assert len(rates[0]) == 2
    again = sweep(space, overlay(ALONE, {"sweep": {"seeds": 2}}), *worlds, tmp_path, samples=2, resume=True)
    assert {t["key"] for t in again["trials"]} == {t["key"] for t in outcome["trials"]}


@pytest.mark.timeout(280)
def test_asha_stops_a_trial_whose_probe_falls_behind_and_judges_the_other(ray_session, worlds, tmp_path):
    space = Space("rates", "Which rate?", {}, {"optim": {"lr": grid(1e-9, 2e-3, 1e-8)}}, "", 1)
    early = {"optim": {"epochs": 4}, "sweep": {"stopping": {"kind": "asha", "grace": 0.3, "reduction": 3}}}
    # nothing learned, something learned, nothing learned: whichever probes better, one comes after a better one
    one_at_a_time = {"scaling": {"cpus_per_worker": 2.0}}
    outcome = sweep(space, overlay(ALONE, early, one_at_a_time), *worlds, tmp_path)
    status = {trial["parameters"]["optim.lr"]: trial["status"] for trial in outcome["trials"]}
    assert "done" in status.values()
    assert "stopped" in status.values()
    stopped = next(trial for trial in outcome["trials"] if trial["status"] == "stopped")
    assert stopped["downstream"] == []


def _loguniform(low, high):
    from ray import tune

    return tune.loguniform(low, high)
