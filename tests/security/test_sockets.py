"""Nothing that a local run starts listens on more than loopback."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# On a machine of its own every socket is one of the run's; those that listen only for a moment count, too.
WATCHED = """
    import ipaddress, json, socket, threading, time
    import psutil

    seen, stop = {}, threading.Event()  # ip:port -> [whether that is loopback, who]

    def open_sockets():  # TCP that listens, UDP that is bound and not connected
        for table, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
            with open(f"/proc/net/{table}") as file:
                for words in map(str.split, file.readlines()[1:]):
                    if words[3] == state:
                        ip, port = words[1].split(":")
                        octets = bytes.fromhex(ip)
                        octets = b"".join(octets[i : i + 4][::-1] for i in range(0, len(octets), 4))
                        yield ipaddress.ip_address(octets), int(port, 16)

    def look():
        while not stop.wait(0.05):
            new = {f"{ip} {port}": ip for ip, port in open_sockets() if f"{ip} {port}" not in seen}
            if not new:
                continue
            who = {one.laddr.port: one.pid for one in psutil.net_connections("inet") if one.laddr and one.pid}
            for name, ip in new.items():
                local = (getattr(ip, "ipv4_mapped", None) or ip).is_loopback
                try:
                    process = psutil.Process(who[int(name.split()[1])]).name()
                except (KeyError, psutil.Error):
                    process = "?"
                seen[name] = [local, process]

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    import ray.tune  # as a space does, before Ray is started
    RUN
    time.sleep(0.5)
    stop.set()
    watcher.join()
    print("SEEN " + json.dumps([f"{name} {process}" for name, (local, process) in seen.items() if local]),
          json.dumps([f"{name} {process}" for name, (local, process) in seen.items() if not local]), sep="\t")
"""

TRAIN = """
    from cromss.ray_session import connect
    connect(num_cpus=2)
    import ray
    from cromss.pretrain import main
    assert main(["--data", {data!r}, "--out", {out!r}, "--config", {config!r}]) == 0
    assert ray.is_initialized()
"""


def listeners(run: str, short: Path) -> tuple[list[str], list[str]]:
    """Who listened (`ip port process`) while a script ran on a machine of its own: on loopback, and on more than that."""
    words = a_machine_with_an_address()
    script = short / "watched.py"
    script.write_text(textwrap.dedent(WATCHED).replace("RUN\n", textwrap.dedent(run), 1))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_", "NCCL_"))}
    environment = clean | {"RAY_TMPDIR": str(short), "RAY_worker_niceness": "0", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*words, sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=250
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    assert lines, f"{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    alone, beyond = map(json.loads, lines[0].removeprefix("SEEN ").split("\t"))
    return alone, beyond


def a_machine_with_an_address() -> tuple[str, ...]:
    """Words before a command that run it on a machine of its own, in namespaces, whose name means an address that is not
    loopback and whose packets have somewhere to go. Skips where that is not allowed."""
    setup = (
        "ip link set lo up && ip link add v0 type veth peer name v1 && ip addr add 192.0.2.7/24 dev v0 && "
        "ip link set v0 up && ip link set v1 up && ip route add default via 192.0.2.1 && "
        "hostname elsewhere && printf '127.0.0.1 localhost\\n192.0.2.7 elsewhere\\n' > $hosts && mount --bind $hosts /etc/hosts"
    )
    words = ("unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c",
             f'hosts=$(mktemp); {{ {setup}; }} && "$@"', "bash")  # fmt: skip
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("util-linux's unshare or iproute2 is missing")
    if subprocess.run([*words, "true"], capture_output=True, timeout=60).returncode:
        pytest.skip("network namespaces are not allowed here (they need root and CAP_NET_ADMIN)")
    return words


@pytest.mark.timeout(280)
def test_a_pretraining_on_two_workers_listens_on_loopback_alone(worlds, tmp_path, short):
    """Ray with its dashboard and agents, Train's workers, torch's rendezvous, gloo: on a machine that could be reached."""
    import yaml
    from tiny import TINY

    from cromss.settings import overlay

    (config := tmp_path / "tiny.yaml").write_text(
        yaml.safe_dump(
            overlay(TINY, {"scaling": {"num_workers": 2}, "optim": {"epochs": 1}, "data": {"reader": {"kind": "ray"}}})
        )
    )
    run = TRAIN.format(data=str(worlds[0]), out=str(tmp_path / "out"), config=str(config))
    alone, beyond = listeners(run, short)
    for process in ("gcs_server", "raylet", "ray::RayTrainWorker"):
        assert any(process in who for who in alone), alone
    assert beyond == []


@pytest.mark.timeout(200)
def test_the_watch_sees_a_listener_that_is_open_to_all(short):
    """Ray as it comes, and torch's own store: what the test above would find."""
    run = """
    import torch.distributed
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    """
    _, beyond = listeners(run, short)
    for process in ("gcs_server", "raylet", "python"):
        assert any(process in who for who in beyond), beyond


@pytest.mark.timeout(200)
def test_mlflow_as_it_is_suggested_listens_on_loopback_alone(tmp_path, monkeypatch, short):
    from cromss.tracking import open_ui_command

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = open_ui_command(tmp_path)  # port 5000 of a machine of its own
    run = f"""
    import subprocess
    server = subprocess.Popen({command!r}, shell=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.time() + 120
    while not any("127.0.0.1 5000" in who for who in seen) and time.time() < until:
        time.sleep(0.2)
    time.sleep(1)
    """
    alone, beyond = listeners(run, short)
    assert any("127.0.0.1 5000" in who for who in alone)
    assert beyond == []
