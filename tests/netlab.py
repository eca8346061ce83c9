"""Hosts on one machine: each with its own processes, network, mounts and name, all on one switch.

    with hosts(3) as lab:
        lab.call(0, ["ray", "start", "--head", f"--node-ip-address={lab.host(0).ip}", ...])
        worker = lab.run(1, ["ray", "start", "--block", f"--address={lab.host(0).ip}:6379", ...], env=..., stdout=...)
        lab.partition(1)     # its cable is out ...
        lab.heal(1)          # ... and in again
        lab.reclaim(1)       # the machine is gone, with everything that ran on it
        lab.boot(1)          # another one under the same address, with nothing on it

A host is a set of Linux namespaces. It has an address (10.77.0.10 and up), loopback, the names of the others in /etc/hosts,
no DNS and no way out; /tmp/ray, /dev/shm and the home folder are its own, the rest of the disk is everybody's. Nothing is
added to the machine's own network, several labs do not see each other, and `ray stop` on a host reaches that host alone.
Everything ends with the block, or with the process that made the lab, however that dies.

Needs root, the right to make namespaces, and iproute2; else the test that asks for hosts is skipped.
"""

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NAMESPACES = ["--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--mount", "--uts"]
TOOLS = ("unshare", "nsenter", "ip", "mount", "bash")

# The host's first process: what it waits for is the end of its input, which is the end of the lab.
INIT = """
set -e
own=$1 name=$2 home=$3; shift 3
ip link set lo up
mkdir -p /tmp/ray
mount --bind "$own/ray" /tmp/ray
mount -t tmpfs -o size=2g tmpfs /dev/shm
mount --bind "$own/hosts" /etc/hosts
mount --bind "$own/resolv.conf" "$(realpath /etc/resolv.conf)"
for kept in "$@"; do mkdir -p "$own/home${kept#$home}"; mount --rbind "$kept" "$own/home${kept#$home}"; done
mount --rbind "$own/home" "$home"
hostname "$name"
echo ready
read -r _ || true
"""


@functools.cache
def missing() -> str | None:
    """What this machine lacks for a lab; None: nothing."""
    if os.geteuid() != 0:
        return "hosts in namespaces need root"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"hosts in namespaces need {', '.join(lacking)}"
    trial = "mount -t tmpfs tmpfs /dev/shm && ip link add v0 type veth peer name v1 && ip link add br0 type bridge"
    tried = subprocess.run(["unshare", *NAMESPACES, "bash", "-c", trial], capture_output=True, text=True)
    return f"no namespaces here: {tried.stderr.strip()[-200:]}" if tried.returncode else None


@dataclass(frozen=True)
class Host:
    """One host; `folder` is its own on the common disk (its /tmp/ray is folder/ray, its home folder/home)."""

    number: int
    folder: Path

    @property
    def ip(self) -> str:
        return f"10.77.0.{10 + self.number}"

    @property
    def name(self) -> str:
        return f"host{self.number}"


class Command(subprocess.Popen):
    """A command on a host. Signals reach the command itself, not what it has started (that ends with its host); one that
    still runs at the end of its `with` block is killed."""

    def send_signal(self, sig: int) -> None:
        for _ in range(200):  # nsenter needs a moment to fork
            if self.poll() is not None:
                return
            if child := _child(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, sig)
                return
            time.sleep(0.01)

    def __exit__(self, *error: Any) -> None:
        self.kill()
        super().__exit__(*error)


class Lab:
    """Hosts 0 to count - 1 and the switch between them."""

    def __init__(self, count: int, folder: Path):
        self.folder = folder
        self._hosts = [Host(number, folder / f"host{number}") for number in range(count)]
        self._inits: dict[int, subprocess.Popen] = {}
        self._switch = _init(
            ["--net", "--fork", "--kill-child"], "ip link set lo up; echo ready; read -r _ || true", []
        )
        self._on_switch("ip link add br0 type bridge && ip link set br0 up")
        for number in range(count):
            self.boot(number)

    def host(self, number: int) -> Host:
        return self._hosts[number]

    def boot(self, number: int) -> None:
        """Start a host that does not run."""
        host = self.host(number)
        if number in self._inits:
            raise ValueError(f"{host.name} runs; reclaim it first")
        _furnish(host, self._hosts)
        home = Path.home()
        kept = [str(path) for path in _needed() if path.is_relative_to(home) and path != home]
        self._inits[number] = _init(NAMESPACES, INIT, [str(host.folder), host.name, str(home), *kept])
        _sh(
            f"ip link add v{number} netns {self._switch.pid} type veth peer name eth0 netns {_first(self._inits[number])}"
        )
        self._on_switch(f"ip link set v{number} master br0 up")
        network = f"ip addr add {host.ip}/24 dev eth0 && ip link set eth0 up && ip route add default dev eth0"
        self.call(number, ["bash", "-c", network])

    def run(self, number: int, command: Sequence[str], **popen: Any) -> "Command":
        """Start a command on a host; `popen` as of Popen."""
        first = _first(self._inits[number])
        enter = ["nsenter", "-t", str(first), "-n", "-p", "-m", "-u", f"--wd={popen.pop('cwd', None) or os.getcwd()}"]
        return Command([*enter, *map(str, command)], **popen)

    def call(self, number: int, command: Sequence[str], timeout: float = 120, **popen: Any) -> str:
        """What a command on a host prints. Raises RuntimeError with it where the command fails, and TimeoutExpired."""
        with self.run(number, command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **popen) as process:
            said, _ = process.communicate(timeout=timeout)
        if process.returncode:
            raise RuntimeError(f"host{number}: {' '.join(map(str, command))} ended with {process.returncode}:\n{said}")
        return said

    def partition(self, number: int) -> None:
        """Cut a host off from all others; it runs on."""
        self._on_switch(f"ip link set v{number} down")

    def heal(self, number: int) -> None:
        """Undo `partition`."""
        self._on_switch(f"ip link set v{number} up")

    def reclaim(self, number: int) -> None:
        """SIGKILL to every process of a host at once, as when a cloud takes a machine back."""
        init = self._inits.pop(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(_first(init), 9)  # the first process of a namespace takes all others along
        _ended(init)

    def close(self) -> None:
        for number in list(self._inits):
            self.reclaim(number)
        _ended(self._switch)

    def _on_switch(self, commands: str) -> None:
        _sh(f"nsenter -t {self._switch.pid} -n bash -c '{commands}'")


@contextlib.contextmanager
def hosts(count: int, folder: Path | None = None) -> Iterator[Lab]:
    """A lab of `count` hosts whose own files lie in `folder`, by default in one that is deleted. Skips where it cannot be."""
    if reason := missing():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="netlab-", ignore_cleanup_errors=True))
            )
        lab = Lab(count, folder)
        stack.callback(lab.close)
        yield lab


def _furnish(host: Host, everybody: Sequence[Host]) -> None:
    """Its own folders, empty, and the files that its /etc gets."""
    for name in ("ray", "home"):
        shutil.rmtree(host.folder / name, ignore_errors=True)
        (host.folder / name).mkdir(parents=True)
    lines = ["127.0.0.1 localhost", *(f"{other.ip} {other.name}" for other in everybody)]
    (host.folder / "hosts").write_text("\n".join(lines) + "\n")
    (host.folder / "resolv.conf").write_text("")


def _needed() -> list[Path]:
    """What a host's Python must see, even where it lies in the home folder that the host's own one hides."""
    return list(dict.fromkeys(Path(path) for path in (sys.base_prefix, sys.prefix, Path(__file__).parents[1])))


def _init(namespaces: list[str], script: str, arguments: list[str]) -> subprocess.Popen:
    """`unshare` around a shell that has set up its namespaces when this returns. Raises RuntimeError."""
    process = subprocess.Popen(
        ["unshare", *namespaces, "bash", "-c", script, "init", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if process.stdout.readline() != "ready\n":
        _, said = process.communicate()
        raise RuntimeError(f"a host did not come up:\n{said}")
    return process


def _first(init: subprocess.Popen) -> int:
    """The host's first process, as the machine numbers it."""
    child = _child(init.pid)
    if child is None:
        raise RuntimeError("this host is gone; boot it")
    return child


def _child(parent: int) -> int | None:
    """The only child of a process that has one."""
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def _ended(init: subprocess.Popen) -> None:
    init.stdin.close()
    init.wait(30)
    init.stdout.close()
    init.stderr.close()


def _sh(command: str) -> None:
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip()}")
