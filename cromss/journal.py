"""The run folder on disk: the journal of every training, and the records of the trials.

OUT/sweep.json   OUT/trials/<key>/{trial.json, journal/*.jsonl}      (a single run: OUT/{trial.json, journal/})
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """The metrics of one step of one run; `epoch` may be fractional, `time` is in seconds since 1970."""

    step: int
    epoch: float | None
    time: float
    metrics: dict[str, float]


class Journal:
    """Append-only metrics of one run: `folder/000001.jsonl`, ... one segment for every process that wrote.

    A batch of entries is on disk when `append` returns, unless the disk is full: then they wait in memory for the next one,
    and the training goes on. Steps may repeat, as they do after a resume: the last wins.
    """

    def __init__(self, folder: str | Path, run: str) -> None:
        self.run = run
        self._file = _new_segment(Path(folder))
        self._waiting = b""

    def append(self, *entries: Entry) -> None:
        """Write `entries` and wait for the disk."""
        for entry in entries:
            metrics = {name: float(value) for name, value in entry.metrics.items()}
            line = json.dumps({"run": self.run} | entry._replace(metrics=metrics)._asdict()) + "\n"
            self._waiting += line.encode()
        try:
            while self._waiting:  # unbuffered: of a line that fits only in part, the rest comes next
                self._waiting = self._waiting[self._file.write(self._waiting) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            log.warning("%s cannot be written (%s); the journal waits in memory", self._file.name, error.strerror)

    def log(self, step: int, metrics: Mapping[str, float], epoch: float | None = None) -> None:
        """One entry, timed now."""
        self.append(Entry(step, epoch, time.time(), dict(metrics)))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _new_segment(folder: Path) -> BinaryIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = max((int(path.stem) for path in folder.glob("[0-9]*.jsonl")), default=0) + 1
        while True:
            try:
                return open(folder / f"{number:06d}.jsonl", "xb", buffering=0)
            except FileExistsError:  # another process of this trial took the number
                number += 1
    except OSError as error:
        raise ValueError(f"{folder}: the journal cannot be written ({error.strerror})") from None


def read_journal(folder: str | Path) -> dict[str, list[Entry]]:
    """Entries by run, in the order of their steps; where a step was written twice, the later value of each metric.

    A line that a killed process left half written is skipped.
    """
    runs: dict[str, dict[int, Entry]] = {}
    for path in sorted(Path(folder).glob("[0-9]*.jsonl")):
        for line in path.read_text(errors="replace").splitlines():
            try:
                data = json.loads(line)
                run, entry = data.pop("run"), Entry(**data)
                steps = runs.setdefault(run, {})
                before = steps[entry.step].metrics if entry.step in steps else {}
                steps[entry.step] = entry._replace(metrics=before | entry.metrics)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
    return {run: [steps[step] for step in sorted(steps)] for run, steps in runs.items()}


def read_sweep(out: str | Path) -> dict[str, Any]:
    """`sweep.json` of a run folder; empty for a single pretraining or transfer."""
    return read_json(Path(out) / "sweep.json") or {}


def read_trials(out: str | Path) -> list[dict[str, Any]]:
    """Every trial of a run folder, sorted by key, as `read_trial` gives it."""
    return [read_trial(folder) for folder in trial_folders(out)]


def trial_folders(out: str | Path) -> list[Path]:
    """Where the trials of a run folder lie, sorted; a single run is its own only trial."""
    out = Path(out)
    if (out / "trial.json").exists():
        return [out]
    try:
        with os.scandir(out / "trials") as found:
            return [out / "trials" / name for name in sorted(entry.name for entry in found if entry.is_dir())]
    except FileNotFoundError:
        return []


def read_trial(folder: Path) -> dict[str, Any]:
    """One trial with its `folder`, missing keys filled in. Without a readable `trial.json` it counts as running: it has
    only begun."""
    empty = {"key": folder.name, "arm": folder.name, "seed": 0, "status": "running", "reason": "", "command": "",
             "config": {}, "parameters": {}, "final": {}, "downstream": [], "noise": None, "seconds": None}  # fmt: skip
    found = {key: value for key, value in (read_json(folder / "trial.json") or {}).items() if value is not None}
    return empty | found | {"folder": folder}


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file, or None where there is no such file or none that can be read."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace a JSON file whole: readers see the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(data, indent=1))
    aside.replace(path)
