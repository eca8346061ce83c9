"""A store that does not hold is refused; on request its bad shards are left out, and everybody is told."""

import json
import shutil
from pathlib import Path

import mlflow
import pytest
import yaml
from tiny import TINY

from cromss.data.ingestion import Ingest, ingest
from cromss.data.quarantine import opened
from cromss.data.store import PatchStore
from cromss.data.synthetic import SyntheticEarth
from cromss.pretrain import main as pretrain
from cromss.report import write as write_report
from cromss.settings import overlay
from cromss.training.rows import read_rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("quarantine") / "store"
    ingest(SyntheticEarth(places=64, size=32, seasons=2), path, Ingest(chunk=16, folds=8))
    return path


@pytest.fixture
def damaged(whole, tmp_path) -> Path:
    """One byte of the third shard is flipped."""
    store = shutil.copytree(whole, tmp_path / "store")
    shard = store / "shard-00002.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    return store


@pytest.fixture
def settings(tmp_path):
    here = {"scaling": {"num_workers": 0}, "optim": {"epochs": 2}, "data": {"journal_rows": True}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(overlay(TINY, here)))
    return str(tmp_path / "tiny.yaml")


def patches_of(store: Path, shard: str) -> set[str]:
    index = [one.path for one in PatchStore.open(store, check=False).manifest.shards].index(shard)
    opened_ = PatchStore.open(store, check=False)
    return {
        row["patch_id"]
        for block in range(len(opened_.blocks))
        if opened_.blocks.shard[block] == index
        for slot in range(int(opened_.blocks.n[block]))
        for row in opened_.read(index, int(opened_.blocks.first[block]) + slot, ["patch_id"]).to_pylist()
    }


@pytest.mark.timeout(120)
def test_a_quarantined_shard_is_named_everywhere_and_none_of_its_patches_is_trained_on(
    ray_session, whole, damaged, settings, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    arguments = ["--data", str(damaged), "--out", str(out), "--config", settings]
    assert pretrain([*arguments, "--set", "data.quarantine=true"]) == 0
    line = "quarantine: shard shard-00002.parquet differs from what was ingested (sha256): 32 patches left out"
    assert line in capsys.readouterr().out
    rows = read_rows(out / "rows")
    seen = {patch for attempts in rows.values() for ids in attempts for patch in ids}
    lost = patches_of(whole, "shard-00002.parquet")
    assert len(lost) == 32
    assert seen.isdisjoint(lost)
    assert len({patch.rsplit("/", 1)[0] for patch in seen}) > 30
    trial = json.loads((out / "trial.json").read_text())
    assert trial["pretraining"]["quarantined"][0]["patches"] == 32
    assert "32 patches in 1 damaged shards were left out: shard-00002.parquet" in write_report(out).read_text()
    client = mlflow.MlflowClient(f"sqlite:///{out}/mlflow.db")  # set_tracking_uri would outlive this test
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.data.tags["cromss.quarantined"] == "shard-00002.parquet"
    assert run.data.metrics["data/patches_lost"] == 32


def test_without_being_asked_a_store_that_lacks_a_shard_trains_nothing(
    ray_session, damaged, settings, tmp_path, capsys
):
    (damaged / "shard-00001.parquet").unlink()
    assert pretrain(["--data", str(damaged), "--out", str(tmp_path / "out"), "--config", settings]) == 2
    said = capsys.readouterr().err
    assert "shard-00001.parquet is missing" in said
    assert "data.quarantine=true" in said


def test_a_page_that_breaks_later_stops_the_run_by_name(ray_session, damaged, settings, tmp_path, capsys):
    # sizes and footers are whole: only reading finds it
    assert pretrain(["--data", str(damaged), "--out", str(tmp_path / "out"), "--config", settings]) == 2
    assert "shard shard-00002.parquet cannot be read" in capsys.readouterr().err


def test_what_was_found_once_is_remembered_so_that_a_resumed_run_has_the_same_plan(damaged, tmp_path, monkeypatch):
    record = tmp_path / "quarantine.json"
    first = opened(damaged, quarantine=True, record=record, say=lambda line: None)
    monkeypatch.setattr(PatchStore, "_content_damage", lambda *_: pytest.fail("read again"))
    again = opened(damaged, quarantine=True, record=record, say=lambda line: None)
    assert (again.digest, again.without) == (first.digest, first.without)
    assert first.digest != PatchStore.open(damaged, check=False).digest


def test_a_whole_store_loses_nothing_in_quarantine(whole):
    store = opened(whole, quarantine=True)
    assert (store.without, store.digest) == ((), PatchStore.open(whole).digest)
