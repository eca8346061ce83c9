"""What one worker of several finds wrong ends all of them, with its words."""

import dataclasses
import json

import pytest
from tiny import TINY

from cromss.config import resolve
from cromss.data.store import PatchStore
from cromss.pretrain import REFUSED, _run, check
from cromss.training import pretraining
from cromss.training.rows import read_rows


def test_one_of_several_workers_raises_and_leaves_its_answer_to_the_next_attempt(worlds, tmp_path, monkeypatch):
    job = {
        "config": resolve(TINY).model_dump(mode="json"), "data": str(worlds[0]), "out": str(tmp_path), "downstream": None,
        "key": "pretrain", "threads": 1, "gpu": False, "without": [],
    }  # fmt: skip

    def stay(step):
        return ""

    def fails(*_, **__):
        raise ValueError("shard-00006.parquet cannot be read")

    monkeypatch.setattr(pretraining, "run", fails)
    assert _run(job, 0, "cpu", print, stay) == {"error": "shard-00006.parquet cannot be read", "kind": "ValueError"}
    with pytest.raises(ValueError, match="shard-00006"):
        _run(job, 1, "cpu", print, stay, alone=False)
    monkeypatch.setattr(pretraining, "run", lambda *_, **__: pytest.fail("tried again"))
    for rank in (0, 1):
        assert _run(job, rank, "cpu", print, stay, alone=False)["error"] == "shard-00006.parquet cannot be read"
    assert (tmp_path / REFUSED).exists()


def test_stores_of_other_products_are_refused_before_anything_starts(worlds):
    data, downstream = (PatchStore.open(world) for world in worlds)
    check(resolve(TINY), data, downstream)
    other = downstream.contract("s2").model_copy(update={"product": "Sentinel-2 L2A"})
    downstream.contracts = downstream.contracts | {"s2": other}
    with pytest.raises(ValueError, match=r"s2 product differ: .*Sentinel-2 L1C, .*Sentinel-2 L2A"):
        check(resolve(TINY), data, downstream)


def test_attempts_that_saw_other_rows_are_both_reported(tmp_path):
    def write(attempt, rank, world, ids):
        line = json.dumps({"step": 0, "rank": rank, "world": world, "ids": ids})
        (tmp_path / f"{attempt}-{rank:03d}.jsonl").write_text(line + "\n")

    write("aaa", 0, 1, ["a", "b"])
    write("bbb", 0, 1, ["x", "b"])
    write("ccc", 0, 2, ["a"])  # its other rank was killed before it wrote
    write("ddd", 1, 2, ["b"])  # of yet another attempt: never mixed with it
    assert read_rows(tmp_path) == {0: [["a", "b"], ["x", "b"]]}


def test_a_shard_that_breaks_after_the_quarantine_says_what_to_do(worlds, tmp_path):
    from cromss.data.quarantine import opened

    whole = PatchStore.open(worlds[0])
    assert len(whole.manifest.shards) == 1
    record = tmp_path / "quarantine.json"
    lost = {"shard": "shard-99999.parquet", "reason": "is missing", "patches": 1}
    record.write_text(json.dumps({"store": whole.digest, "lost": [lost]}))
    broken = tmp_path / "store"
    broken.mkdir()
    for file in worlds[0].iterdir():
        (broken / file.name).write_bytes(file.read_bytes() if file.suffix == ".json" else b"gone")
    with pytest.raises(ValueError, match=r"broke after the quarantine of this run was decided .*another --out"):
        opened(broken, quarantine=True, record=record, say=lambda line: None)
    assert dataclasses.asdict(opened(worlds[0], quarantine=True, say=lambda line: None).blocks)["rows"].sum() > 0
