"""A loop that stands still is ended, so that whoever waits for it starts it again."""

import faulthandler
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeVar

Item = TypeVar("Item")
SPARSE = 1.0  # seconds: setting the alarm again more often than that is of no use


class Watchdog:
    """Within its block a process that does not `beat` for `minutes` writes where each of its threads stands to
    `folder/stalled-<who>-<pid>.txt` and ends with status 1. Faulthandler's own thread does it: it needs no interpreter
    lock, which a stuck extension may hold. One a process.

    A worker that is frozen from outside cannot end itself: the others wait for it in their next exchange of gradients, and
    their watchdogs do.
    """

    def __init__(self, minutes: float, folder: Path, who: str | int = 0) -> None:
        self._seconds, self._path = 60 * minutes, folder / f"stalled-{who}-{os.getpid()}.txt"
        self._set = float("-inf")

    def __enter__(self) -> "Watchdog":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w")
        _awake.append(self)
        self.beat()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        _awake.remove(self)
        self._file.close()
        self._path.unlink(missing_ok=True)

    def beat(self) -> None:
        """It moves."""
        if (now := time.monotonic()) - self._set >= min(SPARSE, self._seconds / 4):
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)
            self._set = now


_awake: list[Watchdog] = []


def moving(items: Iterable[Item]) -> Iterator[Item]:
    """The items, with a beat of this process's watchdog, if one is awake, before each."""
    for item in items:
        for dog in _awake:
            dog.beat()
        yield item
