import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_out
import pytest
import yaml

from cromss import provenance, report
from cromss.config import resolve
from cromss.journal import read_trial, write_json
from cromss.settings import overlay

ROOT = Path(__file__).parents[1]
FAKE = fake_out.provenance(3)


def git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()


# --- what is written down -----------------------------------------------------------------------------------------------


def test_the_circumstances_are_those_that_git_and_the_packages_say() -> None:
    import torch

    found = provenance.collect(seed=3, device="cpu", data="/data", store_digest="sha256:1")
    assert found["git"]["revision"] == git("rev-parse", "HEAD")
    assert found["git"]["dirty"] == bool(git("status", "--porcelain", "--untracked-files=no"))
    assert found["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (found["seed"], found["host"], found["data"]) == (3, "cpu", "/data")
    assert "downstream" not in found
    assert provenance.changed(found) == {}


def test_sources_outside_a_checkout_have_the_revision_that_the_image_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    provenance._git.cache_clear()
    assert "git" not in provenance.collect(seed=0)
    provenance._git.cache_clear()
    monkeypatch.setenv(provenance.REVISION, "0123456789abcdef-dirty")
    assert provenance.revision(provenance.collect(seed=0)) == "0123456789ab-dirty"
    monkeypatch.undo()
    provenance._git.cache_clear()


def test_tags_say_the_same_in_short() -> None:
    found = provenance.from_tags(provenance.tags(FAKE))
    assert found == {key: value for key, value in FAKE.items() if key != "seed"} | {
        "git": {"revision": "9e73800c41f2", "dirty": False}
    }


# --- what repeats it ----------------------------------------------------------------------------------------------------


def trial(**fields) -> dict:
    config = resolve({"seed": 3}).model_dump(mode="json")
    return {"key": "abc", "arm": "midF", "seed": 3, "config": config, "command": "", "provenance": FAKE} | fields


def test_each_kind_of_run_is_repeated_by_its_own_verbs() -> None:
    config, out = Path("c.yaml"), Path("new")
    pretrain, transfer = provenance.commands(trial(), config, out)
    assert pretrain == (
        "python -m cromss.pretrain --data /data/pretraining --downstream /data/downstream --config c.yaml --out new/pretraining"
    )
    assert transfer == (
        "python -m cromss.transfer --encoder new/pretraining --downstream /data/downstream --config c.yaml --out new/transfer"
    )
    assert provenance.commands(trial(key="pretrain"), config, out) == [pretrain]
    random = resolve({"pretraining": {"kind": "random"}}).model_dump(mode="json")
    (only,) = provenance.commands(trial(config=random), config, out)
    assert "--encoder random" in only
    paths = {"s1": "/a b/s1.safetensors", "s2": "/c"}
    brought = resolve({"pretraining": {"kind": "checkpoint", "paths": paths}}).model_dump(mode="json")
    (only,) = provenance.commands(trial(config=brought, key="transfer"), config, out)
    assert "--encoder 's1=/a b/s1.safetensors' --encoder s2=/c" in only


def test_what_differs_is_said_before_the_commands() -> None:
    old = FAKE | {"packages": {"torch": "2.0.1", "numpy": provenance.collect(seed=0)["packages"]["numpy"]},
                  "git": {"revision": "f" * 40, "dirty": True}}  # fmt: skip
    said = "\n".join(provenance.remarks(trial(provenance=old, command="python -m cromss.sweep\nrm -rf /")))
    assert "# git checkout ffffffffffff\n" in said
    assert "changes which no commit has" in said
    assert "# pip install torch==2.0.1\n" in said
    assert "numpy" not in said
    assert "/data/pretraining: digest sha256:91ab; IT IS NOT HERE ANY MORE" in said
    assert all(line.startswith("# ") for line in said.splitlines())  # a record can say nothing that a shell would do


def test_a_world_of_its_own_is_made_again_where_it_is_gone(tmp_path: Path) -> None:
    here = FAKE | {"downstream": str(tmp_path)}
    world = {"seed": 5, "places": 12, "noise": {"kind": "symmetric", "rate": 0.4}}
    first, *_ = provenance.commands(trial(world=world, provenance=here), Path("c"), Path("o"))
    assert first.startswith(
        "python -m cromss.ingest synthetic /data/pretraining --no-downstream --set seed=5 --set places=12"
    )
    assert len(provenance.commands(trial(world=world, provenance=here), Path("c"), Path("o"))) == 3


def test_the_workers_that_computed_are_asked_for_again() -> None:
    config = provenance.repeated(trial(pretraining={"workers": 2}))
    assert config["scaling"]["num_workers"] == 2
    assert resolve(config).scaling.num_workers == 2
    assert provenance.repeated(trial())["scaling"]["num_workers"] is None


@pytest.mark.parametrize("run", ["nothing", "empty", "mean"])
def test_what_cannot_be_repeated_is_one_line_and_status_2(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], tracked: tuple[Path, str]
) -> None:
    (tmp_path / "empty").mkdir()
    argv = {"nothing": ["--reproduce", "nowhere"], "empty": ["--reproduce", str(tmp_path / "empty")],
            "mean": ["--reproduce", "midF (mean)", "--tracking-uri", tracked[1]]}[run]  # fmt: skip
    assert report.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert {"nothing": "give its run folder DIR", "empty": "holds no run", "mean": "is the mean of 1 trials"}[
        run
    ] in line


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(run folder, MLflow store) of a sweep whose trials have whole configurations."""
    from cromss.tracking import Sink
    from cromss.trials.ranking import aggregates

    out = fake_out.make(
        tmp_path_factory.mktemp("sweep"), arms=("midF",), seeds=1, repeats=1, epochs=1, size=8, failed=False
    )
    path = out / "trials/midf-0/trial.json"
    write_json(
        path, json.loads(path.read_text()) | {"config": resolve({"optim": {"lr": 1e-5}}).model_dump(mode="json")}
    )
    uri = f"sqlite:///{out / 'mlflow.db'}"
    assert Sink(out, uri=uri).sync(aggregates([read_trial(path.parent)]), final=True)
    return out, uri


def test_an_mlflow_run_is_repeated_from_its_files_and_without_them(
    tracked: tuple[Path, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, uri = tracked
    folder = out / "trials/midf-0"

    def printed(*argv: str) -> str:
        assert report.main([*argv, "--out", str(tmp_path / "new")]) == 0
        return capsys.readouterr().out

    by_folder = printed("--reproduce", str(folder))
    wanted = yaml.safe_load((tmp_path / "new/config.yaml").read_text())
    assert printed("--reproduce", "midF seed 0", "--tracking-uri", uri) == by_folder
    assert printed(str(out), "--reproduce", "midf-0") == by_folder
    assert printed(str(out), "--reproduce", "midF s2-frozen-0") == by_folder  # a downstream run: its trial
    (aside := folder.with_name("moved")).exists() or shutil.move(folder, aside)
    try:
        remembered = printed("--reproduce", "midF seed 0", "--tracking-uri", uri)
        again = yaml.safe_load((tmp_path / "new/config.yaml").read_text())
    finally:
        shutil.move(aside, folder)
    assert remembered.splitlines()[-2:] == by_folder.splitlines()[-2:]
    assert resolve(again) == resolve(wanted)
    sweep = printed("--reproduce", str(out))
    assert sweep.splitlines()[-1] == "python -m cromss.sweep cromss --out runs/first"


def test_the_printed_commands_repeat_a_trial_of_a_sweep_to_the_last_digit(
    worlds: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_session: Any
) -> None:
    from tiny import TINY

    from cromss.data.store import PatchStore
    from cromss.pretrain import pretrain
    from cromss.ray_session import Share
    from cromss.transfer import judge_here
    from cromss.trials.resources import Budget
    from cromss.trials.trial import Setting, record_of

    share = Share(workers=0, cpus=1.0, gpus=0, reader_cpus=0.0, threads=1)
    stores = [PatchStore.open(path) for path in worlds]
    own = {"optim": {"epochs": 1}, "transfer": {"epochs": 1, "modalities": ["s2"]}, "probe": {"every": 1},
           "scaling": {"num_workers": 0}}  # fmt: skip
    setting = Setting(
        base=overlay(TINY, own), data=str(worlds[0]), downstream=str(worlds[1]), out=str(tmp_path / "sweep"),
        budget=Budget(share, {"CPU": 1.0}, 1, 1, 1.0, 0.0), command="python -m cromss.sweep x",
        world=[stores[0].digest, "", "", "cpu"], downstream_digest=stores[1].digest,
    )  # fmt: skip
    record = record_of({"arm": "CromSS-midF", "seed": 1, "objective": {"alpha": {"end": 0.4}}}, setting)
    assert record["provenance"]["store_digest"] == stores[0].digest
    folder, config = tmp_path / "sweep/trials" / record["key"], resolve(record["config"])
    pretrained = pretrain(config, worlds[0], folder, share, key=record["key"], downstream=worlds[1], show=False)
    judged = judge_here(config, folder, worlds[1], key=record["key"])
    write_json(folder / "trial.json", record | {"final": pretrained["final"], "downstream": judged, "status": "done",
                                                "pretraining": pretrained})  # fmt: skip

    assert report.main(["--reproduce", str(folder)]) == 0
    script = capsys.readouterr().out
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=tmp_path, env=os.environ | {
            "PATH": path, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ray_session.get_runtime_context().gcs_address},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    new = tmp_path / f"reproduce-{record['key']}"
    repeated = read_trial(new / "pretraining")["final"]
    for name in ("train/loss", "val/loss", "probe/s2/miou"):
        assert repeated[name] == pytest.approx(pretrained["final"][name], abs=1e-4)
    (result,) = read_trial(new / "transfer")["downstream"]
    assert result["miou"] == pytest.approx(judged[0]["miou"], abs=1e-4)
    assert result["confusion"] == judged[0]["confusion"]
    for alone in ("pretraining", "transfer"):
        assert read_trial(new / alone)["provenance"]["git"]["revision"] == git("rev-parse", "HEAD")
