"""What a run leaves behind, and how MLflow learns of it.

    trials/<key>/journal/*.jsonl, trials/<key>/trial.json  --Sink.sync()-->  MLflow

The files are the truth and MLflow their copy: a server that is down delays the copy and never the training. This is
the only module that imports mlflow, and it does so on the first `sync()`.
"""

import contextlib
import itertools
import json
import logging
import math
import os
import re
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from cromss import provenance
from cromss.journal import Entry, Journal, read_journal, read_json, read_sweep, read_trial, trial_folders, write_json
from cromss.masking import masked
from cromss.settings import leaves

__all__ = ["Aggregate", "Entry", "Journal", "Sink", "open_ui_command", "read_journal", "tracking_uri"]

log = logging.getLogger(__name__)

BATCH = 900  # metrics in one request
PARAMS = 100  # parameters in one request: MLflow's own limit, which also is 1000 of both together
STATUS = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "running": "RUNNING"}


# --- where MLflow is ----------------------------------------------------------------------------------------------


def tracking_uri(out: str | Path) -> str:
    """MLFLOW_TRACKING_URI, else a sqlite file in the run folder (never in the working directory)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_store(out)


def _own_store(out: str | Path) -> str:
    return f"sqlite:///{Path(out).resolve() / 'mlflow.db'}"


def open_ui_command(out: str | Path) -> str:
    """What to type, or which address to open, to see the runs of `out`."""
    uri = tracking_uri(out)
    if uri.startswith(("http://", "https://")):
        return f"open {_public(uri)}"
    beside = Path(sys.executable).with_name("mlflow")
    if beside.is_relative_to(Path.cwd()):
        beside = beside.relative_to(Path.cwd())
    program = str(beside) if beside.exists() else "mlflow"
    # Without job execution the server starts one process instead of eight.
    where = shlex.quote(uri) if masked(uri) == uri else '"$MLFLOW_TRACKING_URI"'
    command = f"{shlex.quote(program)} ui --backend-store-uri {where} --host 127.0.0.1 --port 5000"
    return f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {command}"


def _public(uri: str) -> str:
    """`uri` without user name, password and keys."""
    parts = urlsplit(uri)
    return masked(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri)


# --- the sink -----------------------------------------------------------------------------------------------------


class Aggregate(NamedTuple):
    """A configuration over its seeds: `metrics` hold means and, beside `<name>`, `<name>_std` and the bounds `<name>_low`,
    `<name>_high` of its interval; `params` what identifies it and nothing else, or a comparison of runs shows a hundred."""

    metrics: dict[str, float]
    params: dict[str, Any]
    seeds: int
    repeats: int


class Sink:
    """Copies a run folder to MLflow: a parent run for the sweep, in it a run for each trial, in that a run for each
    downstream training, and beside the trials a run for each configuration.

    `sync()` may be called at any time, by any later process: every run is found by its tag `cromss.run`, and every
    metric is sent once per step. What was sent is remembered in `mlflow-sent.json`.
    """

    def __init__(self, out: str | Path, *, experiment: str = "cromss", uri: str | None = None) -> None:
        self.out = Path(out).resolve()
        self.uri = uri or tracking_uri(self.out)
        self.experiment = experiment
        self._sent = _Sent(self.out / "mlflow-sent.json", _public(self.uri))
        self._client: Any = None
        self._experiment_id = ""
        self._runs: dict[str, _Run] | None = None  # by legal run key; None: not asked for yet
        self._seen: dict[str, Any] = {}  # trial key -> what its files were when it was last sent
        self._pause, self._closed_until, self._warned = 15.0, 0.0, False

    def sync(
        self, aggregates: Mapping[str, Aggregate] | None = None, *, final: bool = False,
        going: Callable[[], bool] = lambda: True,
    ) -> bool:  # fmt: skip
        """Send what MLflow lacks; True when it now has everything.

        A store that cannot be reached costs one warning and False; it is asked again after a growing pause, at once
        with `final`, which also closes the parent run. It ends early, between two trials, when `going` says False.
        """
        if time.monotonic() < self._closed_until and not final:
            return False
        mlflow = _mlflow()
        try:
            self._connect(mlflow)
            whole = self._copy(aggregates or {}, final, going)
        except (mlflow.MlflowException, OSError, ImportError, mlflow.SQLAlchemyError) as error:
            self._rest(error)
            return False
        finally:
            self._sent.save()
        if not whole:
            return False
        if self._warned:
            log.warning("MLflow at %s answers again: it has everything now", _public(self.uri))
        self._pause, self._warned = 15.0, False
        return True

    def attach(self, path: str | Path) -> bool:
        """Copy a file (the report) beside the parent run; False where MLflow cannot be reached."""
        mlflow = _mlflow()
        try:
            self._connect(mlflow)
            self._client.log_artifact(self._ensure("", Path(self.out).name).id, str(path))
        except (mlflow.MlflowException, OSError, ImportError, mlflow.SQLAlchemyError) as error:
            self._rest(error)
            return False
        return True

    def _rest(self, error: Exception) -> None:
        if not self._warned:
            reason = masked(" ".join(str(error).replace(self.uri, _public(self.uri)).split()))[:160]
            log.warning(
                "MLflow at %s cannot be reached (%s); the work goes on, every number is kept under %s and is sent when "
                "it answers, or later by `python -m cromss.report %s --track`",
                _public(self.uri), reason, self.out, self.out,
            )  # fmt: skip
        self._warned, self._client, self._runs = True, None, None
        self._closed_until, self._pause = time.monotonic() + self._pause, min(2 * self._pause, 300.0)

    def _connect(self, mlflow: Any) -> None:
        if self._client is not None:
            return
        client = mlflow.MlflowClient(tracking_uri=self.uri)
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            own = {"artifact_location": (self.out / "mlartifacts").as_uri()} if self.uri == _own_store(self.out) else {}
            self._experiment_id = client.create_experiment(self.experiment, **own)
        else:
            self._experiment_id = found.experiment_id
        self._client = client

    def _copy(self, aggregates: Mapping[str, Aggregate], final: bool, going: Callable[[], bool]) -> bool:
        sweep, folders = read_sweep(self.out), trial_folders(self.out)
        alone = folders == [self.out]
        if not alone:
            kept = ("question", "command", "metric", "budget", "spent", "sentence")
            tags = {f"cromss.{key}": str(sweep[key]) for key in kept if sweep.get(key)}
            tags |= {"cromss.kind": "sweep", "cromss.folder": str(self.out)}
            if said := tags.pop(
                "cromss.sentence", ""
            ):  # the answer to the question: shown as the run's description, too
                tags |= {"cromss.answer": said, "mlflow.note.content": said}
            self._ensure("", sweep.get("space") or self.out.name, tags=tags)
        for folder in folders:
            if not going():
                return False
            files = [folder / "trial.json", *sorted(folder.glob("journal/*.jsonl"))]
            state = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.exists()]
            if self._seen.get(folder.name) != state:
                self._copy_trial(read_trial(folder), alone)
                self._seen[folder.name] = state
        for name, aggregate in aggregates.items():
            tags = {"cromss.kind": "configuration", "cromss.seeds": str(aggregate.seeds),
                    "cromss.repeats": str(aggregate.repeats), "cromss.arm": str(aggregate.params.get("arm", ""))}  # fmt: skip
            counts = {"seeds": aggregate.seeds, "repeats": aggregate.repeats}
            run = self._ensure(f"mean:{name}", f"{name} (mean)", parent="", tags=tags)
            # The step is the number of seeds, so that the history shows how a mean settled.
            entry = Entry(aggregate.seeds, None, time.time(), aggregate.metrics | counts)
            self._send(run, [entry], aggregate.params)
            self._finish(run, "FINISHED")
        if final and not alone:
            self._finish(self._ensure("", ""), "FINISHED")
        return True

    def _copy_trial(self, trial: dict[str, Any], alone: bool) -> None:
        key, parent = ("", None) if alone else (trial["key"], "")
        tags = {"cromss.kind": "trial", "cromss.arm": trial["arm"], "cromss.reason": trial["reason"],
                "cromss.command": trial["command"], "cromss.folder": str(trial["folder"]),
                **provenance.tags(trial.get("provenance") or {})}  # fmt: skip
        lost = (trial.get("pretraining") or {}).get("quarantined") or []
        tags["cromss.quarantined"] = ", ".join(one["shard"] for one in lost)
        config = leaves(trial["config"]) | {"seed": trial["seed"]}
        run = self._ensure(key, f"{trial['arm']} seed {trial['seed']}", parent=parent, tags=tags)
        journals = read_journal(trial["folder"] / "journal")
        entries = journals.pop(trial["key"], [])
        journaled = {name for entry in entries for name in entry.metrics}
        summary = {name: value for name, value in (_means(trial) | costs(trial)).items() if name not in journaled}
        if lost:
            summary["data/patches_lost"] = sum(one["patches"] for one in lost)
        self._send(run, [*entries, Entry(0, None, time.time(), summary)], config)
        downstream = {_name(judged): judged for judged in trial["downstream"]}
        for name in {*downstream, *(run_name.rpartition("/")[2] for run_name in journals)}:
            self._copy_downstream(trial, key, name, downstream.get(name), journals.get(f"{trial['key']}/{name}", []))
        self._finish(run, STATUS.get(trial["status"], "RUNNING"))

    def _copy_downstream(self, trial: dict, parent: str, name: str, judged: dict | None, entries: list[Entry]) -> None:
        names = ("modality", "mode", "repeat", "head", "head_depth", "scheme")
        params = {field: judged[field] for field in names if field in judged} if judged else {}
        tags = {"cromss.kind": "downstream", "cromss.arm": trial["arm"]}
        run = self._ensure(f"{parent}/{name}", f"{trial['arm']} {name}", parent=parent, tags=tags)
        final = [Entry(0, None, time.time(), _scores(judged))] if judged else []
        self._send(run, [*entries, *final], params)
        self._finish(run, "FINISHED" if judged else STATUS.get(trial["status"], "RUNNING"))

    def _ensure(
        self, key: str, name: str, *, parent: str | None = None, tags: Mapping[str, str] | None = None
    ) -> "_Run":
        """The MLflow run of `key`, made where it is missing, with what it lacks of `tags`."""
        if self._runs is None:
            self._runs = self._known()
        tags = {tag: value for tag, value in (tags or {}).items() if value}
        run = self._runs.get(_legal(key))
        if run is None:
            own = {"cromss.run": self._tag(key)} | tags
            if parent is not None:
                own["mlflow.parentRunId"] = self._runs[_legal(parent)].id
            made = self._client.create_run(self._experiment_id, tags=own, run_name=name)
            run = self._runs[_legal(key)] = _Run(made.info.run_id, own, set(), "RUNNING")
        for tag, value in tags.items():
            if run.tags.get(tag) != value:
                self._client.set_tag(run.id, tag, value)
                run.tags[tag] = value
        return run

    def _known(self) -> dict[str, "_Run"]:
        """Every run of this folder that MLflow has, by its (legal) key; asked for once."""
        runs, page = {}, None
        while self._sent.used:
            found = self._client.search_runs(
                [self._experiment_id], f"tags.`cromss.run` LIKE '{self._tag('')}%'", max_results=BATCH, page_token=page
            )
            for run in found:
                info, tags = run.info, run.data.tags
                if self._sent.unsure(info.run_id):  # a process died while sending: only the server knows what arrived
                    history = {name: self._client.get_metric_history(info.run_id, name) for name in run.data.metrics}
                    steps = {name: max(m.step for m in points) for name, points in history.items()}
                    self._sent.steps(info.run_id).update(steps)
                key = tags["cromss.run"].removeprefix(self._tag(""))
                runs[key] = _Run(info.run_id, dict(tags), {sys.intern(name) for name in run.data.params}, info.status)
            if not (page := found.token):
                break
        self._sent.used = True
        return runs

    def _tag(self, key: str) -> str:
        return f"{self._sent.id}/{_legal(key)}"

    def _send(self, run: "_Run", entries: Iterable[Entry], params: Mapping[str, Any]) -> None:
        """Parameters and metrics in as few requests as MLflow allows. A parameter cannot be changed there: the first value
        stays."""
        api, steps = _mlflow(), self._sent.steps(run.id)
        points = [
            api.Metric(_legal(name), value, int(1000 * entry.time), entry.step)
            for entry in entries
            for name, value in entry.metrics.items()
            if entry.step > steps.get(_legal(name), -1)
        ]
        named = [(sys.intern(_legal(name)), str(value)) for name, value in params.items()]
        missing = [api.Param(name, text) for name, text in named if name not in run.params]
        if not points and not missing:
            return
        self._sent.begin(run.id)
        for batch, chosen in itertools.zip_longest(_chunks(points, BATCH), _chunks(missing, PARAMS), fillvalue=[]):
            self._client.log_batch(run.id, metrics=batch, params=chosen)
            for point in batch:
                steps[sys.intern(point.key)] = max(point.step, steps.get(point.key, -1))
            run.params.update(param.key for param in chosen)
        self._sent.end(run.id)

    def _finish(self, run: "_Run", status: str) -> None:
        if run.status == status:
            return
        if status == "RUNNING":
            self._client.update_run(run.id, status=status)
        else:
            self._client.set_terminated(run.id, status)
        run.status = status


@dataclass
class _Run:
    """What is known of a run at MLflow: the names alone of its parameters, thousands of runs are kept."""

    id: str
    tags: dict[str, str]
    params: set[str]
    status: str


class _Sent:
    """What a store already has: the last step of every metric of every run, kept in one file, and beside it, in
    `<name>.log`, a line for whatever was sent since that file was last written.

    `begin` and `end` bracket a sending. A run whose sending did not end is `unsure` to the next process.
    """

    def __init__(self, path: Path, store: str) -> None:
        self._path, self._log = path, path.with_suffix(".log")
        known = read_json(path)
        self.used = known is not None  # whether anything may have been sent before
        self._all = known or {"id": uuid.uuid4().hex}
        self.id: str = self._all["id"]
        self._store = store
        self._runs: dict[str, dict] = self._all.setdefault(store, {})
        for line in self._log.read_text(errors="replace").splitlines() if self._log.exists() else ():
            with contextlib.suppress(ValueError, TypeError):  # the last one may be torn
                where, run_id, state = json.loads(line)
                self._all.setdefault(where, {})[run_id] = state

    def steps(self, run_id: str) -> dict[str, int]:
        return self._runs.setdefault(run_id, {"open": False, "steps": {}})["steps"]

    def unsure(self, run_id: str) -> bool:
        return self._runs.get(run_id, {"open": True})["open"]

    def begin(self, run_id: str) -> None:
        self._write(run_id, True)

    def end(self, run_id: str) -> None:
        self._write(run_id, False)

    def _write(self, run_id: str, opened: bool) -> None:
        if not self._path.exists():
            self.save()
        self._runs[run_id]["open"] = opened
        with self._log.open("a") as file:
            file.write(json.dumps([self._store, run_id, self._runs[run_id]]) + "\n")

    def save(self) -> None:
        write_json(self._path, self._all)
        self._log.unlink(missing_ok=True)


class Found(NamedTuple):
    """An MLflow run as it is remembered there."""

    id: str
    name: str
    tags: dict[str, str]
    params: dict[str, str]


def find_run(uri: str, wanted: str) -> Found:
    """The run of an id, of a name, or of the end of its tag `cromss.run` (a trial's key). Raises ValueError where there is
    none, or more than one."""
    mlflow = _mlflow()
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        with contextlib.suppress(mlflow.MlflowException):
            return _found(client.get_run(wanted))
        quoted = wanted.replace("'", "")
        places = [experiment.experiment_id for experiment in client.search_experiments()]
        asked = (f"attributes.run_name = '{quoted}'", f"tags.`cromss.run` LIKE '%/{quoted}'")
        runs = {run.info.run_id: run for one in asked for run in client.search_runs(places, one, max_results=20)}
    except (mlflow.MlflowException, OSError, ImportError, mlflow.SQLAlchemyError) as error:
        raise ValueError(f"{_public(uri)}: cannot be asked ({masked(' '.join(str(error).split()))[:160]})") from None
    if not runs:
        raise ValueError(f"{wanted}: neither a folder nor the id or name of a run at {_public(uri)}")
    if len(runs) > 1:
        raise ValueError(
            f"{wanted}: {len(runs)} runs at {_public(uri)} are called so; give one's id: {', '.join(runs)}"
        )
    return _found(next(iter(runs.values())))


def _found(run: Any) -> Found:
    return Found(run.info.run_id, run.info.run_name or "", dict(run.data.tags), dict(run.data.params))


class _Mlflow(NamedTuple):
    MlflowClient: Any
    MlflowException: Any
    SQLAlchemyError: Any
    Metric: Any
    Param: Any


def _mlflow() -> _Mlflow:
    """The parts of mlflow that are used, imported late: it costs seconds. Requests fail fast, not after minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a server's client prints two lines a run
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    for name, level in (("mlflow", logging.WARNING), ("alembic", logging.WARNING), ("urllib3", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    return _Mlflow(MlflowClient, MlflowException, SQLAlchemyError, Metric, Param)


def _name(judged: Mapping[str, Any]) -> str:
    return f"{judged.get('modality')}-{judged.get('mode')}-{judged.get('repeat', 0)}"


def _scores(judged: Mapping[str, Any]) -> dict[str, float]:
    prefix = f"test/{judged.get('modality')}/{judged.get('mode')}"
    scores = {f"{prefix}/{name}": judged.get(name) for name in ("miou", "oa", "aa")}
    scores |= {
        f"{prefix}/iou/{c}": value
        for c, value in zip(judged.get("classes") or (), judged.get("iou") or (), strict=False)
    }
    return {name: float(value) for name, value in scores.items() if value is not None and math.isfinite(value)}


def _means(trial: Mapping[str, Any]) -> dict[str, float]:
    """A trial's final metrics and the mean of its downstream runs' scores over their repeats."""
    values: dict[str, list[float]] = {}
    for judged in trial["downstream"]:
        for name, value in _scores(judged).items():
            values.setdefault(name, []).append(value)
    means = {name: sum(found) / len(found) for name, found in values.items()}
    return {k: float(v) for k, v in trial["final"].items() if isinstance(v, (int, float))} | means


def costs(trial: Mapping[str, Any]) -> dict[str, float]:
    """What a trial's parts took in seconds, and the device-hours that it held meanwhile, as far as it has come."""
    clock = trial.get("clock") or {}
    parts = {part: float(clock[part]) for part in ("pretraining", "judging") if clock.get(part) is not None}
    found = {f"cost/{part}_s": seconds for part, seconds in parts.items()}
    if parts and "devices" in clock:
        found["cost/device_hours"] = clock["devices"] * sum(parts.values()) / 3600
    return found


def _legal(name: str) -> str:
    return re.sub(r"[^\w\-./ :]", "_", name)[:250]


def _chunks(items: list, size: int) -> Iterator[list]:
    return (items[i : i + size] for i in range(0, len(items), size))
