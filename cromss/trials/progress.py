"""What a sweep says while it runs."""

import re
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cromss.journal import read_trial, trial_folders
from cromss.trials.spending import is_left

QUIET = 60.0  # seconds without a word, after which the trials that run say how far they are
SHOWN = 6  # of them
_STEP = re.compile(rb"step (\d+)/(\d+)")


class Progress:
    """Beside the trials, in a thread that may be slow or fail: a line for every trial that ends, in a quiet minute one on
    those that run, and MLflow kept up to date. It reads the run folder, as the report does, and of that only what has changed.

    A trial that runs counts for as much as it has done: that is what the time left is reckoned by.
    """

    def __init__(self, out: Path, count: int):
        self.out, self.count, self.began = out, count, time.monotonic()
        self._read: dict[Path, tuple[int, int]] = {}  # trial -> (time, size) of its record when it was last read
        # what the budget cut off will run on: it counts as running
        self._status = {t["key"]: "running" if is_left(t) else t["status"] for t in self._changed()}
        self._before, self._told = self._ended(), self.began
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        if self._before:
            print(f"{self._before} trials are finished already and are not repeated", flush=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join(timeout=120)

    def _watch(self) -> None:
        from cromss.tracking import Sink

        sink, synced = Sink(self.out), time.monotonic()
        while True:
            last = self._stop.wait(1.0)
            self._tell()
            if last:
                return
            if time.monotonic() - self._told > QUIET:
                self._tell_of_those_that_run()
            if time.monotonic() - synced > 10:
                sink.sync(going=lambda: not self._stop.is_set())
                synced = time.monotonic()

    def _changed(self) -> Iterator[dict[str, Any]]:
        """The trials whose record is another than when this was last asked."""
        for folder in trial_folders(self.out):
            try:
                state = (folder / "trial.json").stat()
            except FileNotFoundError:
                continue
            if self._read.get(folder) != (stamp := (state.st_mtime_ns, state.st_size)):
                self._read[folder] = stamp
                yield read_trial(folder)

    def _ended(self) -> int:
        return sum(status == "done" for status in self._status.values())

    def _tell(self) -> None:
        changed = list(self._changed())
        ended = [t for t in changed if t["status"] not in ("running", self._status.get(t["key"]))]
        self._status |= {trial["key"]: trial["status"] for trial in changed}
        before = self._finished() - len(ended)
        going = [done for _, done in self._going()] if ended else []
        for number, trial in enumerate(ended, before + 1):
            self._say(f"[{number}/{self.count}] {_story_of(trial)}", going)

    def _finished(self) -> int:
        return sum(status != "running" for status in self._status.values())

    def _tell_of_those_that_run(self) -> None:
        going = self._going()
        told = [f"{name} {100 * done:.0f} %" for name, done in going[:SHOWN]]
        more = f" and {len(going) - SHOWN} more" if len(going) > SHOWN else ""
        running = f"running: {', '.join(told)}{more}" if going else "none has begun"
        self._say(f"[{self._finished()}/{self.count}] {running}", [done for _, done in going])

    def _say(self, line: str, going: Iterable[float]) -> None:
        self._told = time.monotonic()
        seconds, ended = self._told - self.began, self._finished()
        done = ended - self._before + sum(going)
        left = f"ETA {seconds / done * max(self.count - self._before - done, 0):.0f} s" if done else "ETA unknown"
        print(f"{line}  {seconds:.0f} s, {left}", flush=True)

    def _going(self) -> list[tuple[str, float]]:
        """Every trial that runs, and how much of its pretraining is done."""
        folders = [self.out / "trials" / key for key, status in self._status.items() if status == "running"]
        return [(_name_of(read_trial(folder)), done_of(folder / "progress.log")) for folder in folders]


def done_of(log: Path) -> float:
    """The share of its steps that a pretraining has done, by the last step that its progress.log names."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - 4096, 0))
            steps = _STEP.findall(file.read())
    except OSError:
        return 0.0
    return int(steps[-1][0]) / int(steps[-1][1]) if steps else 0.0


def _name_of(record: dict[str, Any]) -> str:
    varied = (f"{key.split('.')[-1]}={value}" for key, value in record["parameters"].items())
    return " ".join((record["arm"], "seed", str(record["seed"]), *varied))


def _story_of(record: dict[str, Any]) -> str:
    name = _name_of(record)
    if record["status"] != "done":
        return f"{name} {record['status'].upper()}: {record['reason']}"
    means: dict[str, list[float]] = {}
    for run in record["downstream"]:
        means.setdefault(f"{run['modality']} {run['mode']}", []).append(run["miou"])
    told = "  ".join(f"{what} {100 * sum(v) / len(v):.1f}" for what, v in means.items())
    return f"{name} mIoU {told}"
