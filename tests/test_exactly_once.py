"""kill -9 at any moment, another number of workers: every global step sees the rows it would have seen."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest
from tiny import TINY

from cromss.config import resolve
from cromss.data.ingestion import Ingest, ingest
from cromss.data.store import PatchStore
from cromss.data.synthetic import SyntheticEarth
from cromss.training import pretraining
from cromss.training.rows import read_rows

LAYER = {"optim": {"epochs": 6}, "data": {"journal_rows": True}}

WORKER = textwrap.dedent("""
    import json, sys
    from pathlib import Path
    import torch, torch.distributed as dist
    from cromss.config import resolve
    from cromss.data.store import PatchStore
    from cromss.training import pretraining

    rank, world, port, data, out, config = sys.argv[1:]
    torch.set_num_threads(1)
    if int(world) > 1:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=int(world))
    pretraining.run(resolve(json.loads(config)), PatchStore.open(data), Path(out))
""")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("once") / "store"
    ingest(SyntheticEarth(places=72, size=32, seasons=2), path, Ingest(chunk=16, folds=9))
    return path


def start(world: int, store: Path, out: Path) -> list[subprocess.Popen]:
    """The processes of one attempt."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = resolve(TINY, LAYER).model_dump_json()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(world), str(port), str(store), str(out), config],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for rank in range(world)
    ]


def kill_after(processes: list[subprocess.Popen], folder: Path, step: int) -> None:
    """kill -9, all at once, as soon as that step was begun."""
    deadline = time.monotonic() + 100
    while max(read_rows(folder), default=-1) < step:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), processes[0].stderr.read().decode()[-2000:]
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()


@pytest.mark.timeout(280)
def test_rows_of_every_step_are_those_of_the_uninterrupted_run(store, tmp_path):
    pretraining.run(resolve(TINY, LAYER), PatchStore.open(store), tmp_path / "whole")
    whole = read_rows(tmp_path / "whole" / "rows")
    steps = len(whole)
    assert list(whole) == list(range(steps))
    assert steps == 6 * 64 // 8

    out = tmp_path / "killed"
    kill_after(start(1, store, out), out / "rows", 11)  # an epoch is 8 steps
    kill_after(start(2, store, out), out / "rows", 29)
    (last,) = start(1, store, out)
    assert last.wait() == 0, last.stderr.read().decode()[-2000:]

    found = read_rows(out / "rows")
    assert list(found) == list(range(steps))
    for step, attempts in found.items():
        assert all(rows == whole[step][0] for rows in attempts), step
    assert Counter(len(attempts) for attempts in found.values())[1] > steps / 3  # only steps after a checkpoint repeat
    ranks = sorted(path.stem.split("-")[1] for path in (out / "rows").glob("*.jsonl"))
    assert ranks == ["000", "000", "000", "001"]  # three attempts, the second of two workers
    for epoch in range(6):  # and an epoch holds every training place once
        places = [patch.split("/")[0] for step in range(8 * epoch, 8 * epoch + 8) for patch in found[step][-1]]
        assert len(places) == len(set(places)) == 64
