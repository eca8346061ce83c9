"""What a sweep spends: device-hours that its trials hold, over all its attempts, and the cap on them.

OUT/spending.jsonl   a line whenever a trial starts or ends and every BEAT seconds: the time, and how many devices are
                     held from then on. A driver that is killed loses what it held since its last line.
"""

import json
import logging
import os
import time
import uuid
from pathlib import Path
from typing import Any

from cromss.leaving import ask, asked

BEAT = 10.0  # seconds: what a killed driver may leave uncounted
GRACE = 10.0  # seconds that trials have at the cap to write a checkpoint and leave, before they are killed
CUT = "budget: "  # how the reason of a trial begins that the cap has cut off

log = logging.getLogger(__name__)


def is_cut(record: dict[str, Any]) -> bool:
    """Whether a trial was ended by the budget: with a larger one it goes on, unlike one that was stopped early."""
    return record["status"] == "stopped" and record["reason"].startswith(CUT)


def is_left(record: dict[str, Any]) -> bool:
    """Whether a trial has begun and has work before it: ended by the budget, or with its driver."""
    return record["status"] == "running" or is_cut(record)


def spent(path: Path, unit: str) -> float:
    """Hours of `unit` in a ledger; 0 where there is none. A line that a killed process left half written is skipped."""
    held: dict[str, tuple[float, float]] = {}  # attempt -> (time, devices) of its last line
    seconds = 0.0
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            attempt, now = (entry["attempt"], entry["unit"]), (float(entry["time"]), float(entry["held"]))
        except (ValueError, TypeError, KeyError):
            continue
        if entry["unit"] == unit:
            before, devices = held.get(attempt, now)
            seconds += max(now[0] - before, 0.0) * devices
            held[attempt] = now
    return seconds / 3600


class Ledger:
    """Who holds devices, from when to when: `devices` of `unit` ("GPU-hours") a trial. The only writer of its file.

    cap   hours, all attempts together, from which on `exhausted` is True; None: no cap
    cut   names of the trials that ran when the cap was met, or when the sweep was asked to leave
    """

    def __init__(self, path: Path, devices: float, unit: str, cap: float | None = None) -> None:
        self.path, self.devices, self.unit, self.cap = path, devices, unit, cap
        self.cut: frozenset[str] = frozenset()
        self._attempt = uuid.uuid4().hex[:12]
        self._began, self._clock = time.time(), time.monotonic()  # a wall clock may be set back while it runs
        self._spent, self._counted = spent(path, unit), 0.0
        self._running: set[str] = set()
        self._unwritten: list[str] = []
        self._written = -BEAT

    @property
    def hours(self) -> float:
        """Spent so far, earlier attempts included."""
        return self._spent + self.devices * len(self._running) * (self._now() - self._counted) / 3600

    @property
    def running(self) -> frozenset[str]:
        """The trials that hold devices now."""
        return frozenset(self._running)

    @property
    def exhausted(self) -> bool:
        return self.cap is not None and self.hours >= self.cap

    def start(self, trial: str) -> None:
        """A trial holds its devices from now on."""
        self._count()
        self._running.add(trial)
        self._write("start", trial)

    def end(self, trial: str) -> None:
        """It does so no longer; nothing happens for one that does not."""
        if trial in self._running:
            self._count()
            self._running.remove(trial)
            self._write("end", trial)

    def beat(self) -> None:
        """Write down that the trials still run, if the last line is old. Cheap: for calling many times a second."""
        if self._running and self._now() - self._written >= BEAT:
            self._count()
            self._write("beat")

    def cut_off(self) -> None:
        """The cap is met, or the sweep was asked to leave: remember whom that ends."""
        self.cut = self.cut or frozenset(self._running)

    def close(self) -> None:
        """Every trial has ended."""
        for trial in sorted(self._running):
            self.end(trial)

    def _now(self) -> float:
        return time.monotonic() - self._clock

    def _count(self) -> None:
        self._spent, self._counted = self.hours, self._now()

    def _write(self, event: str, trial: str = "") -> None:
        """A disk that is full delays the line, and never the sweep."""
        entry = {"time": self._began + self._counted, "held": self.devices * len(self._running), "unit": self.unit,
                 "event": event, "trial": trial, "attempt": self._attempt}  # fmt: skip
        self._unwritten.append(json.dumps(entry) + "\n")
        self._written = self._counted
        try:
            with self.path.open("a") as file:
                file.write("".join(self._unwritten))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if len(self._unwritten) == 1:
                log.warning("%s cannot be written (%s); the count goes on in memory", self.path, error.strerror)
        else:
            self._unwritten.clear()


def watched(ledger: Ledger, out: Path) -> dict[str, Any]:
    """What Tune's RunConfig takes so that the ledger sees every trial start and end, and the cap ends them all; and so that
    none begins once the sweep in `out` was asked to leave: those that run are waited for while they write their checkpoints.

    Tune asks the stopper at every turn of its loop (ten times a second), reports or none. At the cap trials that do not listen
    are killed with their workers and tasks after GRACE; at SIGTERM the driver's own end takes them along.
    """
    from ray import tune

    class Cap(tune.Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        leaving: frozenset[str] | None = None  # the trials that are on their way out
        late = float("inf")

        def stop_all(self) -> bool:
            ledger.beat()
            if ledger.exhausted and self.leaving is None:
                ask(out, f"{CUT}the cap was met")
                self.late = time.monotonic() + GRACE
            if not asked([out]):
                return False
            if self.leaving is None:
                ledger.cut_off()
                self.leaving = ledger.running
            self.leaving &= ledger.running
            return not self.leaving or time.monotonic() >= self.late

    class Watch(tune.Callback):
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ledger.start(trial.trial_id)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ledger.end(trial.trial_id)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ledger.end(trial.trial_id)

    return {"stop": Cap(), "callbacks": [Watch()]}
