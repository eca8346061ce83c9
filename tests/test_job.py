"""`ray job submit -- python -m cromss.sweep` to a head of the test's own, on ports of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from ports import free_ports
from tiny import TINY

from cromss.settings import overlay
from cromss.tracking import tracking_uri

ROOT = Path(__file__).parents[1]


@pytest.fixture
def head(tmp_path):
    """The dashboard's address of a Ray head that ends with the test, process group and all."""
    gcs, dashboard, client, *agent = free_ports(6)
    temp = Path("/tmp") / f"cr{os.getpid()}"  # socket paths must be short
    alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # on loopback alone, where the machine has an address, too
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_raylet_start_wait_time_s": "180"} | alone
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"]
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    # The agent's own ports too: beside another Ray on this machine the default ones are taken, and no job is accepted.
    ports += [f"--dashboard-agent-listen-port={agent[0]}", f"--dashboard-agent-grpc-port={agent[1]}",
              f"--metrics-export-port={agent[2]}"]  # fmt: skip
    local = ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={temp}"]
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(
            [*ray, *ports, *local, "--object-store-memory=200000000", "--disable-usage-stats"],
            stdout=log, stderr=log, env=environment, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    try:
        for _ in range(120):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api/version", timeout=2)
                break
            assert process.poll() is None, (tmp_path / "head.log").read_text()
            time.sleep(1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.timeout(290)
def test_a_submitted_sweep_succeeds_and_its_runs_are_in_mlflow(head, worlds, tmp_path):
    out = tmp_path / "out"
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps(overlay(TINY, {"optim": {"epochs": 1}})))
    space = tmp_path / "one.py"
    space.write_text(
        '"""Does it run as a job?"""\nfrom cromss.trials.space import grid\n\n\n'
        'def space():\n    return {"arm": grid("random", "midF")}\n'
    )
    variables = {"CROMSS_DATA": str(worlds[0]), "CROMSS_DOWNSTREAM": str(worlds[1]), "CROMSS_OUT": str(out)}
    submit = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", head]
    command = [*submit, "--runtime-env-json", json.dumps({"env_vars": variables}), "--",
               sys.executable, "-m", "cromss.sweep", str(space), "--config", str(config)]  # fmt: skip
    for _ in range(10):
        job = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=270,
        )
        if "No available agent" not in job.stdout + job.stderr:  # the dashboard answers before its agent does
            break
        time.sleep(3)
    assert job.returncode == 0, job.stdout + job.stderr
    assert "succeeded" in job.stdout
    assert "midF" in job.stdout
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(out))
    runs = client.search_runs([client.get_experiment_by_name("cromss").experiment_id])
    assert {run.data.tags.get("cromss.arm") for run in runs} >= {"random", "midF"}
