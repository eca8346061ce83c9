"""The stage of every experiment: the product's commands as a user starts them, something that goes wrong, and what is left.

Nothing is known of a process but whose child it is: workers are found in the tree of the command or node that was started
here, by the journal of rows that they hold open, and ended by number.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from ports import free_ports, of_a_head, of_an_agent
from tiny import TINY

from cromss.config import resolve
from cromss.data.store import PatchStore
from cromss.data.stream import open_batches
from cromss.settings import overlay
from cromss.training.pretraining import make_plan

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# `ray`, on loopback alone, where this machine has an address of its own, too
RAY = [sys.executable, str(ROOT / "cluster/node/on_loopback.py")]
BASE = overlay(TINY, {"data": {"journal_rows": True}, "optim": {"epochs": 6}})
STEPS = 32  # of an epoch of the store of these experiments

# A busy machine is no failure, and the cluster of an experiment tells nobody about it.
QUIET = {"RAY_raylet_start_wait_time_s": "180", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}


# --- processes --------------------------------------------------------------------------------------------------------


class Process:
    """A command in a session of its own, its words in a file."""

    def __init__(
        self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None,
        run: Callable[..., subprocess.Popen] = subprocess.Popen,
    ):  # fmt: skip
        self.log = log
        self._said = len(self.text)
        with log.open("a") as file:
            self.popen = run(
                [str(word) for word in command], stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT,
                env=os.environ | QUIET | (env or {}), start_new_session=True,
            )  # fmt: skip
        self._seen: dict[int, psutil.Process] = {}
        self.id = ""  # of a node in its cluster

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def said(self) -> str:
        """What this process has printed, without its predecessors on the same file."""
        return self.text[self._said :]

    @property
    def runs(self) -> bool:
        return self.popen.poll() is None

    def tree(self) -> list[psutil.Process]:
        """It and everything it started that is still there, also what has lost its parent since it was last looked for."""
        for root in [self.pid, *self._seen]:
            try:
                one = psutil.Process(root) if root == self.pid and root not in self._seen else self._seen[root]
                for found in (one, *one.children(recursive=True)):
                    self._seen.setdefault(found.pid, found)
            except psutil.NoSuchProcess:
                continue
        return [one for one in self._seen.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def wait(self, seconds: float) -> int:
        """Its exit status. Raises AssertionError with its last words when it takes longer."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:g} s:\n{self.said[-3000:]}") from None

    def kill(self, signum: int = signal.SIGKILL) -> float:
        """Signal this process alone; when."""
        self.tree()
        self.popen.send_signal(signum)
        return time.time()

    def kill_all(self) -> float:
        """SIGKILL it and all that it started, as a machine that is switched off; when."""
        kill(self.tree())
        return time.time()

    def end(self) -> None:
        """Ask it to leave, then leave nothing of it behind."""
        self.tree()
        if self.runs:
            self.popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(10)
        kill(self.tree())
        self.popen.wait(10)


def kill(processes: Iterable[psutil.Process], signum: int = signal.SIGKILL) -> None:
    """Signal these and no others: a number that was given to another process since is not theirs any more."""
    for one in processes:
        try:
            one.send_signal(signum)
        except psutil.NoSuchProcess:
            continue


def worker(processes: Iterable[psutil.Process], out: Path, rank: int) -> psutil.Process | None:
    """The process among these that takes the steps of `rank` into `out`: it holds their journal open."""
    for one in processes:
        try:
            files = [Path(file.path) for file in one.open_files()]
        except psutil.Error:
            continue
        if any(file.parent == out / "rows" and file.stem.endswith(f"-{rank:03d}") for file in files):
            return one
    return None


def until(condition: Callable[[], Any], seconds: float, what: str, process: Process | None = None) -> Any:
    """The first true answer. Raises AssertionError, naming `what`, after so many seconds or once `process` is gone."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        gone = process is not None and not process.runs
        if gone and not (found := condition()):
            raise AssertionError(f"ended ({process.popen.returncode}) before {what}:\n{process.said[-3000:]}")
        if found:
            break
        if time.monotonic() > deadline:
            words = f":\n{process.said[-3000:]}" if process else ""
            raise AssertionError(f"not within {seconds:g} s: {what}{words}")
        time.sleep(0.05)
    return found


# --- the product's commands -------------------------------------------------------------------------------------------


def configuration(path: Path, *layers: dict[str, Any]) -> Path:
    """The smallest run, with these layers, as a file for --config."""
    path.write_text(yaml.safe_dump(overlay(BASE, *layers)))
    return path


def verb(name: str, *arguments: Any) -> list[str]:
    return [sys.executable, "-m", f"cromss.{name}", *map(str, arguments)]


# --- rows -------------------------------------------------------------------------------------------------------------


def taken(out: Path) -> dict[int, dict[str, dict[int, list[str]]]]:
    """step -> attempt -> rank -> rows, of everything that any rank wrote down; a torn last line is left out."""
    steps: dict[int, dict[str, dict[int, list[str]]]] = {}
    for path in sorted((out / "rows").glob("*.jsonl")):
        attempt, _, rank = path.stem.rpartition("-")
        for line in path.read_text().splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue
            steps.setdefault(found["step"], {}).setdefault(attempt, {})[int(rank)] = found["ids"]
    return steps


def patches(out: Path) -> set[str]:
    """Every patch that any step began with."""
    return {
        one for attempts in taken(out).values() for ranks in attempts.values() for ids in ranks.values() for one in ids
    }


def newest_step(out: Path) -> int:
    """The newest step that any rank has begun; -1 before the first."""
    return max(taken(out), default=-1)


def planned(store: Path | PatchStore, config: Path) -> list[list[str]]:
    """The rows of every step of the run that nothing disturbs: drawn by the plan alone, nothing but names read."""
    opened = store if isinstance(store, PatchStore) else PatchStore.open(store)
    plan, _ = make_plan(resolve(yaml.safe_load(config.read_text())), opened)
    return [batch.ids for batch in open_batches(opened, plan, bands={})]


@dataclass(frozen=True)
class Rows:
    """What became of the rows of the plan: `lost` by nobody seen, or left out between a checkpoint and the first step after it;
    `wrong` seen in a step that is not theirs; `repeated` steps that a later attempt took again; `attempts` starts that took a
    step."""

    lost: int
    wrong: int
    repeated: int
    attempts: int

    @classmethod
    def of(cls, out: Path, plan: list[list[str]]) -> "Rows":
        steps = taken(out)
        lost = wrong = 0
        for step, rows in enumerate(plan):
            seen = Counter()
            for ranks in steps.get(step, {}).values():
                ids = Counter(one for rank in ranks.values() for one in rank)
                wrong += (ids - Counter(rows)).total()
                seen |= ids
            lost += (Counter(rows) - seen).total()
        beyond = [ranks for step in steps if step >= len(plan) for ranks in steps[step].values()]
        wrong += sum(len(ids) for ranks in beyond for ids in ranks.values())
        first = {attempt: step for step in sorted(steps, reverse=True) for attempt in steps[step]}
        saved = [0, *resumed_at(out)]
        for (
            begun
        ) in first.values():  # an attempt that has died may have seen the rows of a step that its successor skips
            lost += sum(map(len, plan[max(step for step in saved if step <= begun) : begun]))
        repeated = sum(len(attempts) > 1 for attempts in steps.values())
        return cls(lost, wrong, repeated, len(first))

    @property
    def measured(self) -> dict[str, int]:
        return {"rows lost": self.lost, "rows wrong": self.wrong, "steps repeated": self.repeated}


@dataclass(frozen=True)
class Fault:
    """The moment at which something was broken, and how far the attempts of these runs had come by then."""

    outs: tuple[Path, ...]
    at: float
    attempts: frozenset[str]

    @classmethod
    def now(cls, *outs: Path) -> "Fault":
        return cls(
            outs,
            time.time(),
            frozenset(path.stem.rpartition("-")[0] for out in outs for path in out.glob("rows/*.jsonl")),
        )

    def over(self) -> bool:
        """Whether a new attempt has begun a step that none of the old ones had."""
        for out in self.outs:
            old, new = -1, -1
            for step, attempts in taken(out).items():
                old = max(old, step) if self.attempts & attempts.keys() else old
                new = max(new, step) if attempts.keys() - self.attempts else new
            if new > old >= 0:
                return True
        return False

    def recovered(self, seconds: float, process: Process | None = None) -> float:
        """Seconds from the fault until then."""
        until(self.over, seconds, "a step after those before the fault", process)
        return time.time() - self.at


def worlds_of(out: Path) -> list[int]:
    """How many workers each attempt had, in the order of their first steps."""
    first: dict[str, tuple[int, int]] = {}
    for step, attempts in sorted(taken(out).items()):
        for attempt, ranks in attempts.items():
            first.setdefault(attempt, (step, len(ranks)))
    return [ranks for _, ranks in sorted(first.values())]


def resumed_at(out: Path) -> list[int]:
    """The steps at which attempts went on, in their order."""
    lines = (out / "progress.log").read_text().splitlines() if (out / "progress.log").exists() else []
    return [
        int(line.split("resuming at step")[1].split()[0].strip(",.;:")) for line in lines if "resuming at step" in line
    ]


# --- a cluster of node processes on this machine ------------------------------------------------------------------------


class Cluster:
    """A Ray head and nodes, each a `ray start --block` with all that it starts, on ports of their own."""

    def __init__(self, folder: Path, **head: Any):
        self.folder = folder
        # socket paths must be short
        self.temp = Path("/tmp") / f"cr{os.getpid()}-{free_ports(1)[0]}"
        self.ports = free_ports(6)
        self.address = f"127.0.0.1:{self.ports[0]}"
        self.nodes: list[Process] = []
        self.head = self.start_head(**head)

    @property
    def environment(self) -> dict[str, str]:
        """For a command that joins."""
        return {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "disabled"}

    def start_head(self, **options: Any) -> Process:
        head = self._start(
            "head", "--head", *of_a_head(self.ports), "--dashboard-host=127.0.0.1", f"--temp-dir={self.temp}", **options
        )
        self._joined(head, 1)
        return head

    def add(self, **options: Any) -> Process:
        """Another node on this machine."""
        before = set(self.alive())
        node = self._start(
            f"node{len(self.nodes)}", f"--address={self.address}", *of_an_agent(free_ports(3)), **options
        )
        self.nodes.append(node)
        self._joined(node, len(before) + 1)
        (node.id,) = set(self.alive()) - before
        return node

    def drain(self, node: Process, seconds: int) -> float:
        """Give notice, as a cloud that takes a machine back in so many seconds; when."""
        notice = [
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=spot",
            f"--deadline-remaining-seconds={seconds}",
        ]
        began = time.time()
        command = [*RAY, "drain-node", f"--address={self.address}", f"--node-id={node.id}", *notice]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | self.environment, timeout=60)
        return began

    def _start(self, name: str, *options: str, **more: Any) -> Process:
        named = [f"--{key.replace('_', '-')}={value}" for key, value in more.items()]
        store = [] if "object_store_memory" in more else ["--object-store-memory=200000000"]
        command = [*RAY, "start", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        return Process([*command, *options, *store, *named], self.folder / f"{name}.log", {"RAY_AUTH_MODE": "disabled"})

    def _joined(self, node: Process, nodes: int) -> None:
        until(lambda: len(self.alive()) >= nodes, 180, f"node {nodes} of the cluster", node)

    def alive(self) -> list[str]:
        """Ids of the nodes that the head counts as alive, asked without becoming a driver."""
        from ray._raylet import GcsClient

        try:
            nodes = GcsClient(address=self.address).get_all_node_info(timeout=5)
        except Exception:
            return []
        return [node_id.hex() for node_id, info in nodes.items() if info.state == 0]

    def spilled(self) -> list[tuple[Path, int]]:
        """What the object stores have put on disk and not removed: (file, bytes)."""
        found = []
        for file in self.temp.glob("session_2*/ray_spilled_objects*/*"):
            with contextlib.suppress(FileNotFoundError):
                found.append((file, file.stat().st_size))
        return found

    def end(self) -> None:
        for node in (*reversed(self.nodes), self.head):
            node.end()
        shutil.rmtree(self.temp, ignore_errors=True)
