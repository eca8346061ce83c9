"""Processes that measure side by side (`cromss.costs.measuring`): as many as will compute side by side in the run."""

import contextlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from statistics import fmean
from typing import Any

from cromss.costs.measuring import ANSWER
from cromss.data.store import PatchStore

PATIENCE = 120.0  # seconds beyond what a measurement was given, after which it is given up


class Unmeasured(RuntimeError):
    """A measurement that did not come off, and why."""


class Crowd:
    """`size` processes, started on entry and ended on exit. `started`: seconds until the
    last one was ready to work, less what it waited for a CPU."""

    def __init__(self, size: int) -> None:
        self.size, self.started = size, 0.0
        self._members: list[subprocess.Popen[str]] = []
        self._readers = ThreadPoolExecutor(size, thread_name_prefix="cromss-crowd")

    def __enter__(self) -> "Crowd":
        command = [sys.executable, "-W", "ignore", "-m", "cromss.costs.measuring"]
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
        for _ in range(self.size):
            self._members.append(subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env=environment,
            ))  # fmt: skip
        try:
            ages = [answer["age"] for answer in self._answers(self._members, PATIENCE)]
        except BaseException:
            self.__exit__()
            raise
        self.started = max(ages)
        return self

    def __exit__(self, *error: object) -> None:
        for member in self._members:
            member.kill()
            member.wait()
        self._readers.shutdown()
        for member in self._members:
            with contextlib.suppress(BrokenPipeError):
                member.stdin.close()
            member.stdout.close()

    def ask(
        self, do: str, config: Any, stores: list[PatchStore | None], *, threads: int, patience: float, members: int = 0,
        ranks: int = 0, **options: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """What `members` of them (default: all) find when they all do the same at once; numbers are their means.

        ranks   of them, the i-th is told that it is worker i % ranks. Raises `Unmeasured` when one fails or is too slow.
        """
        chosen = self._members[: members or self.size]
        for number, member in enumerate(chosen):
            own = options | ({"rank": number % ranks, "world": ranks} if ranks else {})
            command = {
                "do": do,
                "config": config,
                "stores": [_said(store) for store in stores],
                "threads": threads,
                "fits": len(chosen) * threads <= (os.cpu_count() or 1),
                "with": own,
            }
            try:
                member.stdin.write(json.dumps(command) + "\n")
                member.stdin.flush()
            except OSError:
                raise Unmeasured("a process of the measurement ended; is there too little memory?") from None
        found = self._answers(chosen, patience + PATIENCE)
        for answer in found:
            if "error" in answer:
                raise Unmeasured(answer["error"])
        numbers = [name for name, value in found[0].items() if isinstance(value, (int, float))]
        return found[0] | {name: fmean(answer[name] for answer in found) for name in numbers}

    def _answers(self, members: list[subprocess.Popen[str]], seconds: float) -> list[dict[str, Any]]:
        """One from each, in their order."""
        until = time.monotonic() + seconds
        reading = [self._readers.submit(_answer, member) for member in members]
        try:
            return [one.result(max(0.0, until - time.monotonic())) for one in reading]
        except TimeoutError:
            raise Unmeasured(f"no answer within {seconds:.0f} s") from None


def _answer(member: subprocess.Popen[str]) -> dict[str, Any]:
    """The next answer of a process; what else it prints is passed over."""
    for line in member.stdout:
        if line.startswith(ANSWER):
            return json.loads(line.removeprefix(ANSWER))
    raise Unmeasured("a process of the measurement ended; is there too little memory?")


def _said(store: PatchStore | None) -> dict[str, Any] | None:
    """How another process finds the same store."""
    return None if store is None else {"path": str(store.path), "without": [asdict(lost) for lost in store.without]}
