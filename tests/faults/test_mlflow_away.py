"""What happens to MLflow: its server is killed, away for a minute, and started again."""

import time
import urllib.request

import numpy as np
import pytest
from ports import free_ports
from stage import BIN, Process, Rows, configuration, newest_step, planned, until
from test_sweeps import sweep

from cromss.journal import read_journal, read_trials

AWAY = 60.0  # seconds
LONG = {"scaling": {"num_workers": 0}, "optim": {"epochs": 120}, "probe": {"every": 10}}


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/health", timeout=2).status == 200
    except OSError:
        return False


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_minute_without_mlflow_delays_its_copy_and_nothing_else(store, worlds, tmp_path, started, experiment):
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    command = [BIN / "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--workers", "1",
               "--artifacts-destination", tmp_path / "artifacts", "--host", "127.0.0.1", "--port", port]  # fmt: skip

    def serve() -> Process:
        server = started(
            Process(map(str, command), tmp_path / "server", {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
        )
        until(lambda: answers(address), 120, "MLflow's server", server)
        return server

    server = serve()
    config = configuration(tmp_path / "config.yaml", LONG)
    run = started(
        Process(sweep(tmp_path, [2e-3], (store, worlds[1]), config), tmp_path / "log", {"MLFLOW_TRACKING_URI": address})
    )
    folder = until(lambda: next((t["folder"] for t in read_trials(tmp_path / "out")), None), 120, "the trial", run)
    until(lambda: newest_step(folder) > 10, 60, "its first steps", run)
    pace = Pace(folder)
    before = pace.over(20.0)
    server.kill_all()
    during = pace.over(AWAY)
    assert run.runs, "the run must outlast the minute"
    noticed = "cannot be reached" in run.said
    serve()
    assert run.wait(300) == 0, run.said

    entries = read_journal(folder / "journal")[folder.name]
    journal = {(name, entry.step): value for entry in entries for name, value in entry.metrics.items()}
    found = history(address, tmp_path)
    missing, other = (
        journal.keys() - found.keys(),
        [key for key in journal.keys() & found.keys() if found[key] != journal[key]],
    )
    rows = Rows.of(folder, planned(store, config))
    experiment(
        6, "MLflow's server away for a minute", "step time unchanged; its history equals the journal afterwards",
        {"a step before, ms": before, "while away, ms": during, "values": len(journal), "missing": len(missing),
         "different": len(other), **rows.measured},
        noticed and not missing and not other and during < 1.3 * before and rows.lost == rows.wrong == rows.repeated == 0,
    )  # fmt: skip


class Pace:
    """Median milliseconds a step, from a look at the journal of rows every half second."""

    def __init__(self, folder):
        self.folder = folder

    def over(self, seconds: float) -> float:
        looks, end = [(time.monotonic(), newest_step(self.folder))], time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.5)
            looks.append((time.monotonic(), newest_step(self.folder)))
        paces = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in zip(looks, looks[4:], strict=False) if b[1] > a[1]]
        return 1000 * float(np.median(paces))


def history(address: str, tmp_path) -> dict[tuple[str, int], float]:
    """(metric, step) -> value of the only trial that MLflow has."""
    from mlflow import MlflowClient

    client = MlflowClient(address)
    experiments = [one.experiment_id for one in client.search_experiments()]
    (trial,) = client.search_runs(experiments, "tags.`cromss.kind` = 'trial'")
    names = trial.data.metrics
    points = [(name, point) for name in names for point in client.get_metric_history(trial.info.run_id, name)]
    return {(name, point.step): point.value for name, point in points}
