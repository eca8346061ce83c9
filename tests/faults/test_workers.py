"""What happens to workers: killed in mid-epoch, frozen, stuck, asked to leave."""

import os
import shutil
import signal
import time

import pytest
import stage
from stage import STEPS, Fault, Process, Rows, configuration, newest_step, planned, resumed_at, until, verb

TWO = {"scaling": {"num_workers": 2}}


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_worker_killed_in_mid_epoch_costs_the_steps_since_the_checkpoint(store, tmp_path, started, experiment):
    out, config = tmp_path / "out", configuration(tmp_path / "config.yaml", TWO)
    run = started(Process(verb("pretrain", "--data", store, "--out", out, "--config", config), tmp_path / "log"))
    middle = 2 * STEPS + STEPS // 2
    until(lambda: newest_step(out) >= middle, 120, "the middle of the third epoch", run)
    victim = stage.worker(run.tree(), out, rank=1)
    fault = Fault.now(out)
    stage.kill([victim])
    back = fault.recovered(120, run)
    assert run.wait(120) == 0, run.said
    rows = Rows.of(out, planned(store, config))
    experiment(
        1,
        "worker SIGKILL in mid-epoch, 1 of 2",
        "goes on by itself from the newest checkpoint; no row lost",
        {"back after, s": back, **rows.measured, "resumed at step": resumed_at(out)[-1]},
        rows.lost == rows.wrong == 0
        and rows.attempts == 2
        and rows.repeated < STEPS
        and resumed_at(out) == [2 * STEPS],
    )


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_hung_worker_is_ended_and_the_others_go_on_from_the_checkpoint(store, tmp_path, started, experiment):
    stall = {"scaling": {"stall_minutes": 0.25}}
    out, config = tmp_path / "out", configuration(tmp_path / "config.yaml", TWO, stall)
    run = started(Process(verb("pretrain", "--data", store, "--out", out, "--config", config), tmp_path / "log"))
    until(lambda: newest_step(out) >= 2 * STEPS + STEPS // 2, 120, "the middle of the third epoch", run)
    frozen = stage.worker(run.tree(), out, rank=1)
    fault = Fault.now(out)
    stage.kill([frozen], signal.SIGSTOP)
    back = fault.recovered(180, run)
    assert run.wait(120) == 0, run.said
    rows, stacks = Rows.of(out, planned(store, config)), [path.read_text() for path in out.glob("stalled-*.txt")]
    experiment(
        13, "hung worker (SIGSTOP of 1 of 2)",
        "after scaling.stall_minutes (here 15 s) restarted from the newest checkpoint; stacks kept",
        {"back after, s": back, **rows.measured, "stacks kept": len(stacks), "frozen one gone": not frozen.is_running()},
        rows.lost == rows.wrong == 0 and rows.attempts == 2 and rows.repeated < STEPS and resumed_at(out) == [2 * STEPS]
        and any("all_reduce" in text or "backward" in text for text in stacks) and not frozen.is_running(),
    )  # fmt: skip


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_step_that_never_returns_is_ended_where_it_stands(store, tmp_path, started, experiment):
    """The store's disk hangs: a shard is a pipe that nobody writes to, until it is a shard again."""
    copy = shutil.copytree(store, tmp_path / "store")
    stall = {"scaling": {"stall_minutes": 0.25, "num_workers": 1}}
    out, config = tmp_path / "out", configuration(tmp_path / "config.yaml", stall)
    run = started(Process(verb("pretrain", "--data", copy, "--out", out, "--config", config), tmp_path / "log"))
    until(lambda: newest_step(out) >= STEPS + STEPS // 2, 120, "the middle of the second epoch", run)
    shards = sorted(copy.glob("shard-*.parquet"))
    for shard in shards:
        shard.rename(shard.with_suffix(".aside"))
        os.mkfifo(shard)
    fault = Fault.now(out)
    until(lambda: [path for path in out.glob("stalled-*.txt") if path.stat().st_size], 90, "the stacks", run)
    noticed = time.time() - fault.at
    for shard in shards:
        shard.with_suffix(".aside").replace(shard)
    back = fault.recovered(120, run)
    assert run.wait(120) == 0, run.said
    rows, stacks = Rows.of(out, planned(copy, config)), "".join(path.read_text() for path in out.glob("stalled-*.txt"))
    experiment(
        13.5, "a step that never returns (the store's disk hangs)",
        "after scaling.stall_minutes (here 15 s) restarted from the newest checkpoint; stacks kept",
        {"ended after, s": noticed, "back after, s": back, **rows.measured},
        rows.lost == rows.wrong == 0 and rows.repeated <= STEPS and noticed > 10 and "stream.py" in stacks,
    )  # fmt: skip


@pytest.mark.timeout(200)
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.faults)])
def test_sigterm_ends_a_pretraining_with_a_checkpoint_in_mid_epoch(
    workers, store, tmp_path, joined, started, experiment
):
    # no checkpoint but for the signal
    never = {"scaling": {"num_workers": workers, "checkpoint_epochs": 1000}, "optim": {"epochs": 8}}
    out, config = tmp_path / "out", configuration(tmp_path / "config.yaml", never)
    command = verb("pretrain", "--data", store, "--out", out, "--config", config)
    run = started(Process(command, tmp_path / "log", joined))
    until(lambda: newest_step(out) >= STEPS // 2, 90, "the middle of the first epoch", run)
    asked = run.kill(signal.SIGTERM)
    status = run.wait(60)
    left, fault = time.time() - asked, Fault.now(out)
    again = started(Process(command, tmp_path / "log", joined))
    back = fault.recovered(90, again)
    assert again.wait(120) == 0, again.said
    rows = Rows.of(out, planned(store, config))
    experiment(
        12 + workers / 10, f"SIGTERM to cromss.pretrain, {f'{workers} workers' if workers else 'in one process'}",
        "a checkpoint in mid-epoch, exit 143 within 30 s; the same command goes on from that very step",
        {"left after, s": left, "exit status": status, "back after the command, s": back, **rows.measured},
        status == 143 and left < 30 and rows.lost == rows.wrong == rows.repeated == 0
        and len(resumed_at(out)) == 1 and "SIGTERM: left at step" in run.said,
    )  # fmt: skip
