"""What happens to files: a checkpoint torn, a shard with another byte."""

import os
import re
import shutil

import pytest
import stage
from stage import STEPS, Fault, Process, Rows, configuration, newest_step, planned, resumed_at, until, verb

from cromss.data.quarantine import opened
from cromss.data.store import PatchStore

ALONE = {"scaling": {"num_workers": 0}, "optim": {"epochs": 4}}


@pytest.mark.timeout(120)
def test_a_torn_newest_checkpoint_is_skipped_by_name_and_the_one_before_is_taken(
    store, tmp_path, joined, started, experiment
):
    out, config = tmp_path / "out", configuration(tmp_path / "config.yaml", ALONE)
    command = verb("pretrain", "--data", store, "--out", out, "--config", config)
    run = started(Process(command, tmp_path / "log", joined))
    until(lambda: newest_step(out) >= 2 * STEPS + 4, 60, "the third epoch", run)
    run.kill_all()
    before, newest = sorted((out / "checkpoints").glob("step-*"))
    torn = newest / "model.safetensors"
    os.truncate(torn, torn.stat().st_size // 2)
    fault = Fault.now(out)
    again = started(Process(command, tmp_path / "log", joined))
    back = fault.recovered(60, again)
    assert again.wait(60) == 0, again.said
    rows, named = (
        Rows.of(out, planned(store, config)),
        f"{newest.name}: skipped, {torn.name} does not match" in again.said,
    )
    experiment(
        8,
        "torn newest checkpoint",
        "skipped by name, the one before it is taken; no row lost",
        {"back after, s": back, **rows.measured, "resumed at step": resumed_at(out)[-1]},
        rows.lost == rows.wrong == 0 and named and resumed_at(out) == [STEPS] == [int(before.name[5:])],
    )


@pytest.fixture
def damaged(store, tmp_path):
    """(store with one other bit in a cell of its third shard, the patches of that shard)."""
    copy = shutil.copytree(store, tmp_path / "store")
    shard = copy / "shard-00002.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    (described,) = (one for one in PatchStore.open(store).manifest.shards if one.path == shard.name)
    return copy, described.rows


@pytest.mark.timeout(120)
def test_a_corrupt_shard_stops_the_run_by_name_or_is_left_out_on_request(
    damaged, tmp_path, joined, started, experiment
):
    copy, patches = damaged
    config = configuration(tmp_path / "config.yaml", ALONE)
    outs = tmp_path / "strict", tmp_path / "lenient"
    command = ["pretrain", "--data", copy, "--config", config, "--out"]
    strict = started(Process(verb(*command, outs[0]), tmp_path / "strict.log", joined))
    asked = "data.quarantine=true"
    lenient = started(Process(verb(*command, outs[1], "--set", asked), tmp_path / "lenient.log", joined))
    status = strict.wait(90)
    assert lenient.wait(90) == 0, lenient.said
    plan = planned(copy, config)
    stopped = re.search(
        r"^pretrain: .*shard shard-00002.parquet cannot be read, .* of patch (\S+) fails", strict.said, re.M
    )
    told = f"sha256): {patches} patches left out" in lenient.said
    rows = Rows.of(outs[1], planned(opened(copy, quarantine=True, say=lambda line: None), config))
    experiment(
        9, "corrupt shard (one bit)", "stops by name; with data.quarantine=true goes on without the shard, told and counted",
        {"exit status": status, "patches left out": patches, **rows.measured},
        status == 2 and stopped and stopped[1] in {one for step in plan for one in step} - stage.patches(outs[0]) and told
        and rows.lost == rows.wrong == 0,
    )  # fmt: skip
