"""What happens to nodes: one is killed, one is taken back with a notice, the head is started again."""

import time

import pytest
import stage
from stage import STEPS, Cluster, Fault, Process, Rows, configuration, newest_step, planned, resumed_at, until, verb

# A worker a node; two where there is room, one else.
ELASTIC = {
    "scaling": {"num_workers": 2, "min_workers": 1, "cpus_per_worker": 1.0, "patience": 0.1},
    "optim": {"epochs": 8},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head that computes nothing."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), num_cpus=0)
    yield cluster
    cluster.end()


def host_of(cluster: Cluster, out, rank: int) -> Process:
    """The node that computes `rank`."""
    return next(node for node in cluster.nodes if stage.worker(node.tree(), out, rank))


@pytest.mark.faults
@pytest.mark.timeout(400)
def test_a_killed_node_costs_the_steps_since_the_checkpoint_and_fewer_workers_go_on(
    cluster, store, tmp_path, started, experiment
):
    out, config = tmp_path / "out", configuration(tmp_path / "config.yaml", ELASTIC, {"optim": {"epochs": 25}})
    for _ in range(2):
        started(cluster.add(num_cpus=1))
    command = verb("pretrain", "--data", store, "--out", out, "--config", config)
    run = started(Process(command, tmp_path / "log", cluster.environment))
    until(lambda: newest_step(out) >= 2 * STEPS + STEPS // 2, 120, "the middle of the third epoch", run)
    node = host_of(cluster, out, rank=1)
    fault = Fault.now(out)
    node.kill_all()
    back = fault.recovered(200, run)
    started(cluster.add(num_cpus=1))
    until(lambda: stage.worlds_of(out)[-1] == 2 or not run.runs, 120, "two workers again", run)
    assert run.wait(200) == 0, run.said
    rows, worlds = Rows.of(out, planned(store, config)), stage.worlds_of(out)
    experiment(
        2, "node killed, 1 of 2; later another one joins",
        "goes on from the newest checkpoint with fewer workers, then with more again; no row lost",
        {"back after, s": back, **rows.measured, "workers": " -> ".join(map(str, worlds))},
        rows.lost == rows.wrong == 0 and rows.repeated < STEPS and worlds == [2, 1, 2] and resumed_at(out)[0] == 2 * STEPS,
    )  # fmt: skip


@pytest.mark.faults
@pytest.mark.timeout(400)
def test_on_a_spot_notice_the_workers_leave_with_a_checkpoint_and_repeat_nothing(
    cluster, store, tmp_path, started, experiment
):
    never = {"scaling": {"checkpoint_epochs": 1000}}  # but for the notice
    out, config = tmp_path / "out", configuration(tmp_path / "config.yaml", ELASTIC, never)
    for _ in range(2):
        started(cluster.add(num_cpus=1))
    command = verb("pretrain", "--data", store, "--out", out, "--config", config)
    run = started(Process(command, tmp_path / "log", cluster.environment))
    until(lambda: newest_step(out) >= STEPS // 2, 120, "the middle of the first epoch", run)
    node, fault = host_of(cluster, out, rank=1), Fault.now(out)
    given = cluster.drain(node, seconds=30)
    until(lambda: "taken back: left at step" in run.said, 30, "the workers to leave", run)
    left = time.time() - given
    node.kill_all()  # what the cloud does at its deadline
    back = fault.recovered(200, run)
    assert run.wait(200) == 0, run.said
    rows, worlds = Rows.of(out, planned(store, config)), stage.worlds_of(out)
    experiment(
        14, "spot notice (drain) for 1 node of 2", "workers write a checkpoint in mid-epoch, leave, go on on what is there",
        {"left after, s": left, "back after, s": back, **rows.measured, "workers": " -> ".join(map(str, worlds))},
        rows.lost == rows.wrong == rows.repeated == 0 and left < 30 and worlds == [2, 1],
    )  # fmt: skip


@pytest.mark.faults
@pytest.mark.timeout(500)
def test_after_the_head_is_started_again_the_same_command_goes_on(store, tmp_path, started, experiment):
    out, config = tmp_path / "out", configuration(tmp_path / "config.yaml", ELASTIC)
    cluster = started(Cluster(tmp_path, num_cpus=0))
    cluster.add(num_cpus=2)
    command = verb("pretrain", "--data", store, "--out", out, "--config", config)
    run = started(Process(command, tmp_path / "log", cluster.environment))
    until(lambda: newest_step(out) >= 2 * STEPS + STEPS // 2, 120, "the middle of the third epoch", run)
    killed = cluster.head.kill_all()
    status = run.wait(200)
    ended = time.time() - killed
    cluster.nodes[0].end()
    cluster.head = cluster.start_head(num_cpus=0)
    cluster.add(num_cpus=2)
    fault = Fault.now(out)
    again = started(Process(command, tmp_path / "log", cluster.environment))
    back = fault.recovered(200, again)
    assert again.wait(200) == 0, again.said
    rows = Rows.of(out, planned(store, config))
    experiment(
        5, "head killed and started again, the same command again", "goes on from the newest checkpoint; no row lost",
        {"command ended after, s": ended, "back after the command, s": back, **rows.measured},
        status != 0 and rows.lost == rows.wrong == 0 and rows.repeated <= STEPS and len(resumed_at(out)) == 1,
    )  # fmt: skip
