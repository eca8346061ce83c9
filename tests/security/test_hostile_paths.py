"""A path, an id or a record that somebody else wrote stays data: nothing is fetched, nothing written beside the output, nothing
run by a shell."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_source_stac import collected, stac_item

from cromss.data.ingestion import ingest
from cromss.data.quarantine import opened
from cromss.data.sources.layouts import LAYOUTS
from cromss.data.store import PatchStore
from cromss.ingest import main as ingest_main
from cromss.networks.encoders import load_card
from cromss.pages.reproduction import reproduce
from cromss.portrait import portrait
from cromss.pretrain import main as pretrain_main
from cromss.report import main as report_main
from cromss.settings import validate
from cromss.transfer import main as transfer_main

PREFIXES = ("/vsicurl/{}/", "/vsicurl?url={}/", "{}/", "/vsizip//vsicurl/{}/x.zip/", "/vsis3/bucket/", "/vsitar/x.tar/")


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# --- addresses that GDAL would go to --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "synthetic"])
def test_no_layout_goes_where_gdal_would(listener, tmp_path, capsys, layout, prefix):
    where = prefix.format(listener.url) + "tiles"
    for more in ([], ["--live"]):
        assert ingest_main([layout, where, str(tmp_path / "store"), *more]) == 2
    assert listener.calls == []
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_no_verb_goes_where_gdal_would(listener, tmp_path, monkeypatch, capsys, prefix):
    monkeypatch.chdir(tmp_path)
    where, out = prefix.format(listener.url) + "x", str(tmp_path / "out")
    assert pretrain_main(["--data", where, "--out", out]) == 2
    assert transfer_main(["--encoder", f"s2={where}.pth", "--downstream", where, "--out", out]) == 2
    assert report_main([where]) == 2
    for action in ("--describe", "--verify", "--repair"):
        assert ingest_main([action, where]) == 2
    for suffix in (".pth", ".safetensors"):
        with pytest.raises(ValueError):
            load_card(Path(where + suffix))
    assert listener.calls == []
    assert everything(tmp_path) <= {"out"}


# --- ids ------------------------------------------------------------------------------------------------------------------

IDS = ("../../elsewhere/x", "/etc/cron.d/x", "..", "a/../../../elsewhere/y", "<script>alert(1)</script>", "$(touch owned)",
       "x\n/../y", "C:\\x", "%2e%2e%2felsewhere", "=1+1", "-rf")  # fmt: skip


def test_ids_name_rows_and_no_files(tmp_path, elsewhere, monkeypatch):
    """As item, as location: what an id says ends in the columns of a store and in pictures of it."""
    tree, work = tmp_path / "tree", tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    items = []
    for number, name in enumerate(IDS):
        item = stac_item(tree, f"x{number}", seed=number, place=name)
        item.id = name
        items.append(item)
    collected(tree, *items)
    before = everything(tree)
    source = validate(LAYOUTS["stac"], {"path": str(tree)}, {"location": "location"})
    summary = ingest(source, work / "store")
    assert summary.patches == len(IDS)
    store = PatchStore.open(work / "store")
    ids = {patch.location_id for patch in store.sample(len(IDS))}
    assert ids == {" ".join(name.split()) for name in IDS}
    portrait(store, work / "pictures")
    assert everything(tree) == before
    assert {path.split("/")[0] for path in everything(work)} == {"store", "pictures"}
    assert everything(tmp_path) - {f"{top}/{name}" for top in ("tree", "work") for name in everything(tmp_path / top)} == {
        "tree", "work", "elsewhere",
    }  # fmt: skip


# --- records --------------------------------------------------------------------------------------------------------------


def test_a_quarantine_that_names_foreign_files_leaves_them_and_the_store_alone(worlds, tmp_path, elsewhere):
    whole = PatchStore.open(worlds[0])
    before = {file.name: file.read_bytes() for file in worlds[0].iterdir()}
    record = tmp_path / "quarantine.json"
    lost = [{"shard": shard, "reason": "x", "patches": 1} for shard in ("../../elsewhere/x", "/etc/passwd", "*")]
    record.write_text(json.dumps({"store": whole.digest, "lost": lost}))
    store = opened(worlds[0], quarantine=True, record=record, say=lambda line: None)
    assert len(store.blocks) == len(whole.blocks)
    assert {file.name: file.read_bytes() for file in worlds[0].iterdir()} == before


@pytest.mark.parametrize("shard", ["../../etc/passwd", "/etc/passwd", "..\\x"])
@pytest.mark.parametrize("action", ["--describe", "--verify", "--repair"])
def test_no_action_reads_or_repairs_a_shard_outside_of_its_store(worlds, tmp_path, capsys, shard, action):
    manifest = json.loads((worlds[0] / "manifest.json").read_text())
    manifest["shards"][0]["path"] = shard
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(manifest))
    assert ingest_main([action, str(tmp_path / "store")]) == 2
    assert "must be relative to the store and stay inside it" in capsys.readouterr().err
    assert everything(tmp_path) == {"store", "store/manifest.json"}


# --- what is pasted into a shell ------------------------------------------------------------------------------------------

NASTY = ("x; touch owned", "$(touch owned)", "`touch owned`", "'; touch owned; '", "x\ntouch owned\n", "../../elsewhere/x",
         "-x", "a b", "END\ntouch owned\n", "> owned", "&& touch owned")  # fmt: skip


def run_in_a_shell(text: str, folder: Path) -> list[list[str]]:
    """What `python` was called with. Everything else that the text does is done, in `folder`."""
    calls, tools = folder / "calls.jsonl", folder / "bin"
    tools.mkdir(parents=True)
    stub = (
        f"#!{os.sys.executable}\nimport json, sys\nopen({str(calls)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
    )
    (tools / "python").write_text(stub)
    (tools / "python").chmod(0o755)
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", text], cwd=folder, env=environment, timeout=60, capture_output=True)
    return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []


@pytest.mark.parametrize("nasty", NASTY)
def test_the_script_that_repeats_a_trial_runs_nothing_that_a_record_says(tmp_path, elsewhere, nasty):
    run, shell = tmp_path / "trial", tmp_path / "deep" / "shell"
    run.mkdir()
    record = {
        "key": nasty, "arm": nasty, "seed": nasty, "command": nasty, "data": nasty, "status": "done",
        "config": {"seed": 0, "note": nasty, nasty: nasty, "pretraining": {"kind": "checkpoint", "paths": {"s2": nasty}}},
        "world": {nasty: nasty},
        "provenance": {"data": nasty, "downstream": nasty, "store_digest": nasty, "packages": {nasty: nasty},
                       "git": {"revision": nasty, "dirty": True}},
    }  # fmt: skip
    (run / "trial.json").write_text(json.dumps(record))
    calls = run_in_a_shell(reproduce(str(run)), shell)
    assert calls
    assert all(call[:2] in (["-m", "cromss.transfer"], ["-m", "cromss.ingest"]) for call in calls)
    assert any(nasty in word for call in calls for word in call)  # whole, as one word
    made = [path for path in everything(shell) if path.split("/")[0] not in ("bin", "calls.jsonl")]
    assert len({path.split("/")[0] for path in made}) == 1  # the folder of the configuration
    assert made[0].startswith("reproduce-")
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.parametrize("nasty", [*NASTY, "python -m cromss.sweep x; touch owned", "python -m cromss.sweep `touch owned`",
                                   "python -m cromssx; touch owned", "cromss sweep\ntouch owned"])  # fmt: skip
def test_the_line_that_repeats_a_sweep_runs_nothing_else(tmp_path, nasty):
    run = tmp_path / "out"
    run.mkdir()
    (run / "sweep.json").write_text(json.dumps({"space": nasty, "question": nasty, "command": nasty}))
    calls = run_in_a_shell(reproduce(str(run)), tmp_path / "shell")
    assert len(calls) <= nasty.startswith("python -m cromss")
    assert {path.split("/")[0] for path in everything(tmp_path / "shell")} <= {"bin", "calls.jsonl"}


def test_an_honest_command_is_repeated_as_it_was(tmp_path):
    command = "python -m cromss.sweep table1 --out runs/real1 --set 'transfer.modes=[frozen,finetuned]'"
    (tmp_path / "sweep.json").write_text(json.dumps({"space": "table1", "command": command}))
    assert reproduce(str(tmp_path)).splitlines()[-1] == command


def test_reproduce_is_no_door_to_other_folders(tmp_path, capsys, monkeypatch, elsewhere):
    monkeypatch.chdir(elsewhere)
    np.savez(tmp_path / "panels.npz", x=np.zeros(3))
    for run in ("../..", "../elsewhere", "/etc", "/etc/passwd", "../nothing"):
        assert report_main(["--reproduce", run]) == 2
