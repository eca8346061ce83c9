"""What happens to the disk of the checkpoints: it is full, by bytes and by files."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
from stage import STEPS, Process, Rows, configuration, planned, until, verb

from cromss.training.checkpoint import newest_valid

LONG = {"scaling": {"num_workers": 0}, "optim": {"epochs": 16}}


@pytest.fixture
def small(tmp_path):
    """A disk of its own for checkpoints, with room for a few."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m,nr_inodes=60", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> None:
    """Until not a byte is left."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 65536):
            pass
    assert os.statvfs(folder).f_bavail == 0


def crowd(folder: Path) -> None:
    """Until there is a folder left for the next checkpoint, and one of its files: it breaks off in the middle."""
    stat = os.statvfs(folder)
    for number in range(stat.f_ffree - 2):
        (folder / f"crowd-{number}").touch()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("full", [pytest.param(fill, marks=pytest.mark.faults), crowd])
def test_a_disk_that_is_full_costs_a_checkpoint_and_not_the_run(
    full, store, small, tmp_path, joined, started, experiment
):
    out, config = tmp_path / "out", configuration(tmp_path / "config.yaml", LONG)
    command = verb("pretrain", "--data", store, "--out", out, "--config", config, "--checkpoints", small)
    run = started(Process(command, tmp_path / "log", joined))
    until(lambda: len(list(small.glob("step-*"))) == 2, 60, "two checkpoints", run)
    full(small)
    told = f"no checkpoint, {small} cannot be written"
    until(lambda: run.said.count(told) >= 2, 60, "two missed checkpoints, by name", run)
    kept, skipped = newest_valid(small)
    for file in [*small.glob("filler"), *small.glob("crowd-*")]:
        file.unlink()
    until(lambda: newest_valid(small)[0].step > kept.step, 60, "another checkpoint", run)
    assert run.wait(90) == 0, run.said
    rows, missed = Rows.of(out, planned(store, config)), run.said.count(told)
    words = {fill: "not a byte left", crowd: "it breaks off in the middle"}[full]
    experiment(
        7 if full is fill else 7.5, f"disk full while a checkpoint is written ({words})",
        "the one before stays, the run says so and goes on; the next is written when there is room",
        {"checkpoints missed": missed, "kept meanwhile": kept.step, **rows.measured},
        missed >= 2 and kept.step % STEPS == 0 and not skipped and not list(small.glob(".writing-*"))
        and rows.lost == rows.wrong == rows.repeated == 0,
    )  # fmt: skip
