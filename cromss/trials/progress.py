"""What a sweep says while it runs."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cromss.journal import read_trial, trial_folders
from cromss.trials.spending import is_left


class Progress:
    """Beside the trials, in a thread that may be slow or fail: a line for every trial that ends, and MLflow kept up to
    date. It reads the run folder, as the report does, and of that only what has changed."""

    def __init__(self, out: Path, count: int):
        self.out, self.count, self.began = out, count, time.monotonic()
        self._read: dict[Path, tuple[int, int]] = {}  # trial -> (time, size) of its record when it was last read
        # what the budget cut off will run on: it counts as running
        self._status = {t["key"]: "running" if is_left(t) else t["status"] for t in self._changed()}
        self._before = self._ended()
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
        for trial in self._changed():
            status = self._status.get(trial["key"])
            self._status[trial["key"]] = trial["status"]
            if trial["status"] in ("running", status):
                continue
            ended = sum(status != "running" for status in self._status.values())
            seconds, new = time.monotonic() - self.began, max(ended - self._before, 1)
            left = seconds / new * max(self.count - ended, 0)
            print(f"[{ended}/{self.count}] {_story_of(trial)}  {seconds:.0f} s, ETA {left:.0f} s", flush=True)


def _story_of(record: dict[str, Any]) -> str:
    name = f"{record['arm']} seed {record['seed']}"
    varied = " ".join(f"{key.split('.')[-1]}={value}" for key, value in record["parameters"].items())
    if record["status"] != "done":
        return f"{name} {varied} {record['status'].upper()}: {record['reason']}"
    means: dict[str, list[float]] = {}
    for run in record["downstream"]:
        means.setdefault(f"{run['modality']} {run['mode']}", []).append(run["miou"])
    told = "  ".join(f"{what} {100 * sum(v) / len(v):.1f}" for what, v in means.items())
    return f"{name} {varied} mIoU {told}"
