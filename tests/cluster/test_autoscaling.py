"""A sweep makes a cluster grow from its head to all the nodes that it may have, and shrink again when nobody needs them.

The nodes are processes of one host and their GPUs are numbers: what is real is the demand, the autoscaler's answer to it, the
placement, and the end of idle nodes. No cloud is in it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from local_provider import HEAD, cluster
from netlab import hosts

HERE = Path(__file__).parent
WORKERS, IDLE = 2, 20.0  # nodes beside the head; seconds
NODE = {"CPU": 5, "GPU": 4}


def picture(moments: list[dict], end: float, width: int = 72) -> str:
    """Nodes, running and finished trials over time, a column a slice of it: the highest number in the slice."""
    slice_ = end / width
    rows = []
    for name in ("nodes", "running", "done"):
        marks = ""
        for column in range(width):
            till = (column + 1) * slice_
            before = [m for m in moments if m["at"] <= column * slice_][-1:]
            within = [m for m in moments if column * slice_ < m["at"] <= till]
            marks += str(max((m[name] for m in before + within), default=".") or ".")
        rows.append(f"{name:>8} {marks}")
    axis = "".join(f"{round(column * slice_):<12}" for column in range(0, width, 12))
    return "\n".join([*rows, f"{'seconds':>8} {axis}"])


@pytest.mark.faults
@pytest.mark.timeout(420)
def test_a_sweep_scales_a_cluster_up_and_down_again(worlds, tmp_path, capsys):
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_raylet_start_wait_time_s": "180"}
    paths = os.pathsep.join(map(str, (HERE, HERE.parent)))
    with hosts(1) as lab:
        address = f"{lab.host(0).ip}:6379"
        file = lab.host(0).folder / "home" / "ray_bootstrap_config.yaml"  # where `ray up` puts it
        file.write_text(yaml.safe_dump(cluster(address, WORKERS, NODE, IDLE)))
        ray = [sys.executable, "-m", "ray.scripts.scripts"]
        head = ["start", "--head", "--port=6379", f"--node-ip-address={lab.host(0).ip}", "--num-cpus=0", "--num-gpus=0",
                "--object-store-memory=200000000", f"--autoscaling-config={Path.home() / file.name}"]  # fmt: skip
        lab.call(0, [*ray, *head], timeout=240, env=environment | HEAD | {"PYTHONPATH": paths})
        driver = [sys.executable, HERE / "autoscaled_sweep.py", *worlds, tmp_path / "out", str(IDLE)]
        with lab.run(
            0, driver, env=environment | {"RAY_ADDRESS": address, "PYTHONPATH": paths, "MLFLOW_TRACKING_URI": ""},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as process:  # fmt: skip
            said, _ = process.communicate(timeout=360)
    lines = [json.loads(line) for line in said.splitlines() if line.startswith('{"event"')]
    events = {line["event"]: line for line in lines}
    moments = [line for line in lines if line["event"] == "moment"]
    with capsys.disabled():
        print()
        for m in moments:
            print(f"{m['at']:7.1f} s  {m['nodes']} nodes  {m['running']} trials running, {m['done']} done")
        if moments:
            print(picture(moments, moments[-1]["at"] * 1.05))
    assert process.returncode == 0, said[-3000:]
    assert events["connected"]["resources"].get("GPU", 0) == 0  # at the start there is nothing to run on
    capacity = events["connected"]["capacity"]  # and yet it is known what there may be
    assert {name: capacity[name] for name in NODE} == {name: WORKERS * amount for name, amount in NODE.items()}
    assert (events["planned"]["concurrent"], events["planned"]["workers"]) == (2, 4)
    assert events["planned"]["unit"] == "GPU-hours"
    assert moments[0]["nodes"] == 1
    assert max(moment["nodes"] for moment in moments) == 1 + WORKERS
    assert max(moment["running"] for moment in moments) == 2
    trials = events["concluded"]["trials"]
    assert [trial["status"] for trial in trials] == ["done"] * 6, trials
    assert all(trial["workers"] == 4 for trial in trials)
    assert len({node for trial in trials for node in trial["nodes"]}) >= WORKERS  # an idle one may go and another come
    assert events["idle"]["nodes"] == 1
    assert events["idle"]["at"] - events["finished"]["at"] <= IDLE + 60
