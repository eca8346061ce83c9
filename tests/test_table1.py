"""The driver is killed in the middle of a sweep; the same command again ends in the same table, and repeats nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny import TINY

from cromss.journal import read_trials
from cromss.settings import overlay
from cromss.sweep import main

SPACE = '''"""Which row of a small table is best?"""
from cromss.trials.answers import Compare
from cromss.trials.space import grid

ANSWER = Compare("CromSS-midF", "random")


def space():
    return {"arm": grid("random", "CromSS-midF")}
'''
SMALL = overlay(
    TINY,
    {
        "optim": {"epochs": 2},
        "model": {"depth": 4, "decoder_channels": [16, 16, 8, 8]},
        "transfer": {"modes": ["frozen", "zero_shot"], "epochs": 1, "head": {"head_depth": 3}},
        "sweep": {"seeds": 2},
        "scaling": {"num_workers": 0, "checkpoint_epochs": 1},
    },
)
TABLES = ("table.md", "table.tex", "table.csv", "table.html")


@pytest.fixture(scope="module")
def command(tmp_path_factory, worlds) -> list[str]:
    folder = tmp_path_factory.mktemp("space")
    (folder / "small.py").write_text(SPACE)
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    stores = ["--data", str(worlds[0]), "--downstream", str(worlds[1])]
    return [str(folder / "small.py"), *stores, "--config", str(folder / "small.yaml")]


@pytest.fixture(scope="module")
def killed(command, tmp_path_factory) -> tuple[Path, dict[str, tuple[int, dict]]]:
    """A folder whose driver was killed with some trials done and one under way, and what the finished had written."""
    out = tmp_path_factory.mktemp("killed")
    started = [sys.executable, "-m", "cromss.sweep", *command, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(started, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as driver:
        deadline = time.monotonic() + 120
        while not _in_the_middle(out):
            assert driver.poll() is None, driver.stderr.read().decode()
            assert time.monotonic() < deadline, "the sweep never got to its middle"
            time.sleep(0.02)
        os.kill(driver.pid, signal.SIGKILL)
    time.sleep(1.0)  # its Ray dies with it
    return out, {str(path): (path.stat().st_mtime_ns, found) for path, found in _finished(out)}


def _finished(out: Path) -> list[tuple[Path, dict]]:
    return [(t["folder"] / "trial.json", t["clock"]) for t in read_trials(out) if t["status"] == "done"]


def _in_the_middle(out: Path) -> bool:
    """A trial is done and judged, in another a pretraining has saved a checkpoint."""
    states = {trial["folder"]: trial for trial in read_trials(out)}
    begun = [f for f, t in states.items() if t["status"] == "running" and list(f.glob("checkpoints/step-*"))]
    return bool(begun) and any(t["status"] == "done" for t in states.values())


@pytest.mark.timeout(280)
def test_the_same_command_after_kill_9_repeats_nothing_and_ends_in_the_same_table(
    ray_session, command, killed, tmp_path_factory, capsys
) -> None:
    out, before = killed
    assert 0 < len(before) < 4
    assert main([*command, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert {trial["status"] for trial in read_trials(out)} == {"done"}
    assert len(read_trials(out)) == 4
    for path, (written, clock) in before.items():
        assert Path(path).stat().st_mtime_ns == written
        assert json.loads(Path(path).read_text())["clock"] == clock

    whole = tmp_path_factory.mktemp("whole")
    assert main([*command, "--out", str(whole)]) == 0
    for name in TABLES:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name

    table = (out / "table.md").read_text()
    assert table.split("**OA**")[0].strip() in printed  # what the terminal shows
    for column in ("S1 frozen", "S2 frozen", "S1 zero-shot", "S2 zero-shot"):
        assert column in table
    assert "No zero-shot: random (random weights)." in table
    assert printed.count("CromSS-midF against random, mean S1/S2 frozen mIoU: ") == 1
