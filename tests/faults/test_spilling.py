"""What happens to the object store: it is smaller than the data, and others hold most of it."""

import sys
import time

import pytest
from stage import Cluster, Process, Rows, configuration, planned, until, verb

from cromss.data.ingestion import Ingest, ingest
from cromss.data.synthetic import SyntheticEarth

MB = 10**6
READER = {
    "data": {"reader": {"kind": "ray", "row_groups_per_task": 1}, "augment": {"crop": 64}, "sentinel": False},
    "scaling": {"num_workers": 1},
    "optim": {"epochs": 3},
}
# 64 MB of the store in the hands of another driver, for as long as it runs
NEIGHBOUR = """
import time
import numpy, ray
from cromss.ray_session import connect
connect()
held = [ray.put(numpy.ones(8_000_000, numpy.uint8)) for _ in range(8)]
print("holds", flush=True)
time.sleep(600)
"""


@pytest.mark.faults
@pytest.mark.timeout(500)
def test_an_object_store_smaller_than_the_data_completes_and_leaves_nothing_behind(tmp_path, started, experiment):
    store, out = tmp_path / "store", tmp_path / "out"
    ingest(SyntheticEarth(places=144, size=264, seasons=1), store, Ingest(chunk=16, folds=9))
    read = 3 * sum(file.stat().st_size for file in store.glob("*.parquet"))
    config = configuration(tmp_path / "config.yaml", READER)
    cluster = started(Cluster(tmp_path, num_cpus=2, object_store_memory=80 * MB))
    neighbour = started(Process([sys.executable, "-c", NEIGHBOUR], tmp_path / "neighbour.log", cluster.environment))
    until(lambda: "holds" in neighbour.said, 60, "the neighbour", neighbour)
    command = verb("pretrain", "--data", store, "--out", out, "--config", config)
    run = started(Process(command, tmp_path / "log", cluster.environment))
    spilled = 0
    while run.runs:
        spilled = max(spilled, sum(size for _, size in cluster.spilled()))
        time.sleep(0.05)
    assert run.wait(1) == 0, run.said
    rows = Rows.of(out, planned(store, config))
    neighbour.kill_all()
    until(lambda: not cluster.spilled(), 60, "an empty spill folder")
    experiment(
        10, "object store of 80 MB, 64 of them in other hands", "completes by spilling; nothing left in the spill folder",
        {"read, MB": read / MB, "spilled at most, MB": spilled / MB, "files left": len(cluster.spilled()), **rows.measured},
        rows.lost == rows.wrong == rows.repeated == 0 and spilled > 0 and read > 4 * 80 * MB,
    )  # fmt: skip
