"""What happens to workers: killed in mid-epoch."""

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
        {"back after, s": back, **rows.measured, "resumed at step": resumed_at(out)},
        rows.lost == rows.wrong == 0
        and rows.attempts == 2
        and rows.repeated < STEPS
        and resumed_at(out) == [2 * STEPS],
    )
