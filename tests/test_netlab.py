"""Hosts in namespaces: that they are apart where they should be, and nothing of them stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from netlab import hosts, missing

LISTEN = "import socket, time; s = socket.create_server(('0.0.0.0', 5555)); print('up', flush=True); time.sleep(600)"
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 5555), 2)"


@pytest.fixture(scope="module")
def lab():
    with hosts(3) as lab:
        yield lab


def reaches(lab, number, address, within=0.0):
    """Whether a host can connect to that address, by the end of so many seconds."""
    until = time.monotonic() + within
    while lab.run(number, [sys.executable, "-c", CONNECT, address], stderr=subprocess.DEVNULL).wait():
        if time.monotonic() > until:
            return False
    return True


def processes(folder):
    """Those of the machine whose command names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder) in path.read_text():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_a_host_has_its_own_processes_name_and_folders(lab):
    assert lab.call(1, ["hostname"]) == "host1\n"
    assert len(lab.call(1, ["bash", "-c", "ls -d /proc/[0-9]*"]).split()) <= 4  # its first one, this shell, its ls
    lab.call(0, ["bash", "-c", "touch /tmp/ray/here ~/here /dev/shm/here"])
    assert lab.call(1, ["bash", "-c", "ls /tmp/ray ~ /dev/shm"]).split() == [
        "/dev/shm:",
        f"{Path.home()}:",
        "/tmp/ray:",
    ]
    assert (lab.host(0).folder / "home" / "here").exists()
    assert not Path("/tmp/ray/here").exists()


def test_orphans_are_buried(lab):
    """What a daemon leaves behind has the host's first process for its parent."""
    lab.call(0, ["bash", "-c", "(sleep 0.1 &) ; exec true"])
    time.sleep(0.5)
    assert "Z" not in lab.call(0, ["bash", "-c", "cat /proc/[0-9]*/stat | sed 's/.*) //' | cut -c1"])


def test_a_partition_cuts_and_healing_mends(lab):
    with lab.run(0, [sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "up\n"
        assert reaches(lab, 1, "host0")
        lab.partition(1)
        assert not reaches(lab, 1, lab.host(0).ip)
        assert reaches(lab, 2, lab.host(0).ip)
        lab.heal(1)
        assert reaches(lab, 1, lab.host(0).ip, within=20)
        assert not reaches(lab, 1, "127.0.0.1")
    assert not reaches(lab, 1, lab.host(0).ip)  # the command has gone with its block


def test_a_signal_reaches_the_command_itself(lab):
    polite = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.1; done"
    with lab.run(0, ["bash", "-c", polite], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.wait(10) == 7
        assert process.stdout.read() == "bye\n"


def test_a_reclaimed_host_is_gone_at_once_and_comes_back_empty(lab):
    lab.call(2, ["touch", "/tmp/ray/old"])
    daemon = lab.run(2, ["bash", "-c", "setsid sleep 1234 & sleep 1235"])
    lab.reclaim(2)
    assert daemon.wait(5) != 0
    with pytest.raises(KeyError):
        lab.run(2, ["true"])
    lab.boot(2)
    assert lab.call(2, ["ls", "/tmp/ray"]) == ""
    assert "1234" not in lab.call(2, ["bash", "-c", "cat /proc/[0-9]*/cmdline"])
    with pytest.raises(RuntimeError, match="host2: false ended with 1"):
        lab.call(2, ["false"])
    with pytest.raises(subprocess.TimeoutExpired):
        lab.call(2, ["sleep", "60"], timeout=0.5)


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_a_lab_ends_with_the_process_that_made_it(tmp_path):
    script = (
        f"import netlab, pathlib, time\n"
        f"with netlab.hosts(1, pathlib.Path({str(tmp_path)!r})) as lab:\n"
        f"    lab.run(0, ['sleep', '1236'])\n"
        f"    print('up', flush=True)\n    time.sleep(600)"
    )
    command = [sys.executable, "-c", script]
    maker = subprocess.Popen(
        command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with maker:
        said = maker.stdout.readline()
        assert said == "up\n"
        assert processes(tmp_path)
        os.kill(maker.pid, signal.SIGKILL)
    for _ in range(100):
        if not processes(tmp_path):
            break
        time.sleep(0.1)
    assert not processes(tmp_path)
