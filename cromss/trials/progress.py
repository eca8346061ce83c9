"""What a sweep says while it runs."""

import threading
import time
from pathlib import Path
from typing import Any

from cromss.journal import read_trials


class Progress:
    """Beside the trials, in a thread that may be slow or fail: a line for every trial that ends, and MLflow kept up to
    date. It reads the run folder, as the report does."""

    def __init__(self, out: Path, count: int):
        self.out, self.count, self.began = out, count, time.monotonic()
        self._told = {trial["key"] for trial in read_trials(out) if trial["status"] == "done"}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        if self._told:
            print(f"{len(self._told)} trials are finished already and are not repeated", flush=True)
        self._before = len(self._told)
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
                sink.sync()
                synced = time.monotonic()

    def _tell(self) -> None:
        for trial in read_trials(self.out):
            if trial["status"] != "running" and trial["key"] not in self._told:
                self._told.add(trial["key"])
                seconds, ended = time.monotonic() - self.began, len(self._told)
                left = seconds / max(ended - self._before, 1) * max(self.count - ended, 0)
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
