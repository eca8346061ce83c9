"""The verbs pretrain and transfer on Ray, as the user runs them."""

import json
import shutil

import numpy as np
import pytest
import yaml
from tiny import TINY

from cromss.journal import read_journal
from cromss.pretrain import main as pretrain
from cromss.settings import overlay
from cromss.transfer import main as transfer


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    two_workers = {"scaling": {"num_workers": 2}, "data": {"reader": {"kind": "ray"}}}
    path.write_text(yaml.safe_dump(overlay(TINY, two_workers)))
    return str(path)


@pytest.fixture(scope="module")
def pretrained(ray_session, worlds, settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained")
    assert pretrain(["--data", str(worlds[0]), "--out", str(out), "--config", settings]) == 0
    return out


@pytest.mark.timeout(200)
def test_two_workers_fed_by_ray_data_leave_encoders_a_journal_and_progress(pretrained):
    assert {path.stem for path in (pretrained / "encoders").iterdir()} == {"s1", "s2"}
    entries = read_journal(pretrained / "journal")["pretrain"]
    assert [entry.epoch for entry in entries] == [1, 2, 3]
    assert all(np.isfinite(entry.metrics["val/loss"]) for entry in entries)
    told = (pretrained / "progress.log").read_text().splitlines()[-1]
    for what in ("epoch 3", "loss", "alpha", "gamma", "patches/s", "data wait", "ETA"):
        assert what in told


@pytest.mark.timeout(200)
def test_the_same_command_goes_on_with_another_number_of_workers(pretrained, worlds, settings, tmp_path, capsys):
    out = tmp_path / "killed"
    shutil.copytree(pretrained, out)
    newest = max((out / "checkpoints").glob("step-*"))
    shutil.rmtree(newest)  # killed before the last checkpoint was written
    (out / "pretraining.json").unlink()
    one = ["--set", "scaling.num_workers=1", "--set", "data.reader.kind=direct"]
    assert pretrain(["--data", str(worlds[0]), "--out", str(out), "--config", settings, *one]) == 0
    assert "resuming at step" in capsys.readouterr().out
    assert json.loads((out / "pretraining.json").read_text())["workers"] == 1


@pytest.mark.timeout(200)
def test_transfer_judges_both_modalities_in_both_modes_once(pretrained, worlds, settings, tmp_path, capsys):
    arguments = ["--downstream", str(worlds[1]), "--out", str(tmp_path), "--config", settings]
    modes = ["--set", "transfer.modes=[frozen, finetuned]", "--set", "transfer.repeats=2"]
    assert transfer(["--encoder", str(pretrained), *arguments, *modes]) == 0
    printed = capsys.readouterr().out
    assert printed.count("repeat ") == 8
    trial = json.loads((tmp_path / "trial.json").read_text())
    for result in trial["downstream"]:
        confusion = np.array(result["confusion"])
        assert 0.5 * 8 * 32 * 32 < confusion.sum() <= 8 * 32 * 32  # every labelled pixel of the 8 test tiles, once
        assert result["oa"] == pytest.approx(np.trace(confusion) / confusion.sum())
    assert {(r["modality"], r["mode"]) for r in trial["downstream"]} == {
        (m, k) for m in ("s1", "s2") for k in ("frozen", "finetuned")
    }
    before = (tmp_path / "transfer" / "s2-frozen-0" / "result.json").stat().st_mtime_ns
    assert transfer(["--encoder", str(pretrained), *arguments, *modes]) == 0
    assert (tmp_path / "transfer" / "s2-frozen-0" / "result.json").stat().st_mtime_ns == before


@pytest.mark.timeout(200)
def test_a_run_is_scored_zero_shot_by_its_own_classes_and_random_weights_say_why_not(
    pretrained, worlds, settings, tmp_path, capsys
):
    arguments = ["--downstream", str(worlds[1]), "--config", settings, "--set", "transfer.modes=[zero_shot]"]
    assert transfer(["--encoder", str(pretrained), "--out", str(tmp_path / "own"), *arguments]) == 0
    found = json.loads((tmp_path / "own" / "trial.json").read_text())["downstream"]
    assert [(one["modality"], one["mode"], one["repeat"]) for one in found] == [
        ("s1", "zero_shot", 0),
        ("s2", "zero_shot", 0),
    ]
    assert all(one["own_scheme"] == "dynamic-world" and one["miou"] > 0 for one in found)
    capsys.readouterr()
    assert transfer(["--encoder", "random", "--out", str(tmp_path / "random"), *arguments]) == 0
    assert "no zero_shot for s1, s2: only a network that was pretrained on labels here" in capsys.readouterr().out
    assert json.loads((tmp_path / "random" / "trial.json").read_text())["downstream"] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--set", "scaling.use_gpu=true"], "scaling.use_gpu=true: this cluster has no GPU"),
        (["--set", "scaling.num_workers=3"], "3 workers cannot share 4 lanes equally; valid: 1, 2, 4"),
        (["--out", "/proc/nowhere"], "--out /proc/nowhere: cannot be written"),
        (["--data", "/nowhere"], "/nowhere"),
        (["--set", "model.fusion.kind=single", "--set", "model.fusion.modality=s3"], "s3"),
    ],
)
def test_what_cannot_run_is_one_clear_line_and_exit_2(ray_session, worlds, settings, tmp_path, capsys, change, said):
    assert pretrain(["--data", str(worlds[0]), "--out", str(tmp_path), "--config", settings, *change]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ("absent", "no encoders/*.safetensors in there"),
        ("s2=absent.pth", "absent.pth: no such file"),
        ("", "are needed"),
    ],
)
def test_an_encoder_that_is_not_there_is_named(ray_session, worlds, tmp_path, capsys, encoder, said):
    chosen = ["--encoder", encoder] if encoder else []
    assert transfer([*chosen, "--downstream", str(worlds[1]), "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_a_store_without_a_test_split_is_refused_with_the_remedy(ray_session, worlds, settings, tmp_path, capsys):
    arguments = ["--downstream", str(worlds[0]), "--out", str(tmp_path), "--config", settings]
    assert transfer(["--encoder", "random", *arguments]) == 2
    assert "has no split 'test'" in capsys.readouterr().err


def test_an_encoder_of_other_bands_is_refused_before_ray_is_asked(pretrained, tmp_path, capsys, monkeypatch):
    from cromss.data.ingestion import Ingest, ingest
    from cromss.data.synthetic import SyntheticEarth

    earth = SyntheticEarth(places=28, size=32, train=4, test=2, downstream=True)
    ingest(earth, tmp_path / "three", Ingest(bands="3"))
    monkeypatch.setattr("cromss.transfer.judge_all", lambda *_, **__: pytest.fail("started"))
    out = ["--out", str(tmp_path / "out")]
    assert transfer(["--encoder", str(pretrained), "--downstream", str(tmp_path / "three"), *out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the s2 encoder reads B1, B2, " in line
    assert "and holds B4, B3, B2: ingest the downstream set with these bands" in line


def test_a_transfer_says_when_the_test_tiles_were_pretrained_on(
    pretrained, worlds, settings, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("cromss.transfer.check_downstream", lambda *_: None)
    monkeypatch.setattr("cromss.transfer.judge_all", lambda *_, **__: iter(()))
    monkeypatch.setattr("cromss.transfer._table", lambda results: "")
    arguments = ["--downstream", str(worlds[0]), "--out", str(tmp_path / "out"), "--config", settings]
    two_fold = ["--set", "transfer.protocol.kind=two_fold"]
    assert transfer(["--encoder", str(pretrained), *arguments, *two_fold]) == 0
    assert "downstream test tiles lie on pretraining tiles" in capsys.readouterr().out
