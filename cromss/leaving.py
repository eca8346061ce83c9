"""Leaving early with nothing lost: whoever wants a run to end asks for it in a file, its workers look there every few seconds,
write a checkpoint in mid-epoch and end. The same command goes on from that very step.

Asked for by SIGTERM (a job that is stopped, a pod that is evicted), by a cloud that takes a node back, and where more workers
have become free. The folder is one that every node sees, so it carries the word across machines.
"""

import contextlib
import signal
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

ASKED, HOLDER = ".leave", ".holder"
OVERTAKEN = "another process has taken this run over"
GRACE = 25.0  # seconds from SIGTERM to the end, checkpoint or not; Kubernetes kills after 30
TERMINATED = 128 + signal.SIGTERM  # exit status


class Left(Exception):
    """A run ended before its end, as it was asked to; `step` is that of the checkpoint it left with, if it wrote one."""

    def __init__(self, why: str, step: int | None = None) -> None:
        self.why, self.step = why, step
        at = "" if step is None else f" at step {step}, with its checkpoint written"
        self.told = f"{why}: left{at}"
        super().__init__(f"{self.told}; the same command goes on")


def ask(folder: Path, why: str) -> None:
    """Ask the run in `folder` to leave; the first one to ask is the one who is told."""
    if not asked([folder]):
        with contextlib.suppress(OSError):
            (folder / ASKED).write_text(why)


def asked(folders: Iterable[Path]) -> str:
    """Why the run is to leave; empty: it is not."""
    for folder in folders:
        with contextlib.suppress(OSError):
            if why := (folder / ASKED).read_text():
                return why
    return ""


def withdraw(folder: Path) -> None:
    """Nobody is asked any more."""
    (folder / ASKED).unlink(missing_ok=True)


def take_over(folder: Path) -> str:
    """The run in `folder` is this process's from now on; its name there. Workers that an earlier one has left behind (its
    driver killed, its node cut off) leave without a checkpoint when they read another name."""
    name = uuid.uuid4().hex
    (folder / HOLDER).write_text(name)
    return name


def overtaken(folder: Path, name: str) -> bool:
    """Whether the run in `folder` is somebody else's by now."""
    try:
        return (folder / HOLDER).read_text() not in (name, "")
    except OSError:
        return False


@contextlib.contextmanager
def on_sigterm(folder: Path) -> Iterator[None]:
    """While the block runs, SIGTERM asks the run in `folder` to leave; GRACE seconds later, or at the second one, the process
    ends all the same, with exit status 143. In a thread that is not the main one signals stay as they are."""
    withdraw(folder)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    def leave(number: int, frame: FrameType | None) -> None:
        withdraw(folder)  # whatever was asked before, this ends the command
        ask(folder, "SIGTERM")
        signal.signal(signal.SIGTERM, end)
        signal.setitimer(signal.ITIMER_REAL, GRACE)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    signal.signal(signal.SIGALRM, end)
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
