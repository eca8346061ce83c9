"""What happens to the network: a host is cut off from all others, and connected again."""

import functools
import time

import pytest
import stage
from netlab import hosts
from stage import BIN, STEPS, Fault, Process, Rows, configuration, newest_step, planned, resumed_at, until, verb
from test_nodes import ELASTIC

ALIVE = """
from ray._raylet import GcsClient
nodes = GcsClient(address="{address}").get_all_node_info(timeout=5).values()
print(*(node.node_manager_address for node in nodes if node.state == 0))
"""


@pytest.mark.faults
@pytest.mark.timeout(500)
def test_a_partitioned_host_is_done_without_and_leaves_when_it_is_back(store, tmp_path, started, experiment):
    out, config = tmp_path / "out", configuration(tmp_path / "config.yaml", ELASTIC, {"optim": {"epochs": 16}})
    with hosts(3) as lab:
        address, nodes = f"{lab.host(0).ip}:6379", {}
        environment = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}

        def on(host: int, command: list, log: str) -> Process:
            own = {} if command[0] == str(BIN / "ray") else environment
            run = functools.partial(lab.run, host)
            return started(Process(command, tmp_path / log, own | {"RAY_AUTH_MODE": "disabled"}, run))

        def alive() -> list[str]:
            try:
                return lab.call(0, [BIN / "python", "-c", ALIVE.format(address=address)], cwd=stage.ROOT).split()
            except RuntimeError:
                return []

        for host in range(3):
            where = ["--head", "--port=6379", "--num-cpus=0"] if host == 0 else [f"--address={address}", "--num-cpus=1"]
            own = [f"--node-ip-address={lab.host(host).ip}", "--object-store-memory=200000000", "--disable-usage-stats"]
            command = [str(BIN / "ray"), "start", "--block", *where, *own]
            nodes[host] = on(host, command, f"host{host}.log")
            until(lambda host=host: lab.host(host).ip in alive(), 180, f"host {host} in the cluster", nodes[host])

        run = on(0, verb("pretrain", "--data", store, "--out", out, "--config", config), "log")
        until(lambda: newest_step(out) >= 2 * STEPS + STEPS // 2, 120, "the middle of the third epoch", run)
        cut_off = next(host for host in (1, 2) if stage.worker(nodes[host].tree(), out, rank=1))
        fault = Fault.now(out)
        lab.partition(cut_off)
        back = fault.recovered(200, run)
        lab.heal(cut_off)
        healed = time.time()
        until(lambda: not nodes[cut_off].runs, 100, "the isolated node to leave")
        left = time.time() - healed
        until(lambda: not stage.worker(nodes[cut_off].tree(), out, rank=1), 100, "its worker to end")
        ended = time.time() - healed
        assert run.wait(200) == 0, run.said
        rows, worlds = Rows.of(out, planned(store, config)), stage.worlds_of(out)
        experiment(
            3, "network partition of 1 host of 2, healed", "goes on without the host; back again, it leaves; no row lost",
            {"back after, s": back, **rows.measured, "workers": " -> ".join(map(str, worlds)),
             "cable in again: the node leaves after, s": left, "its worker after, s": ended},
            rows.lost == rows.wrong == 0 and worlds == [2, 1] and rows.repeated < STEPS
            and resumed_at(out) == [2 * STEPS],
        )  # fmt: skip
