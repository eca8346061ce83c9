"""`ray job submit -- python -m cromss.sweep` to a head of the test's own, on ports of its own."""

import json
import os
import sys
from pathlib import Path

import pytest
from ray_head import ray_head, submit
from tiny import TINY

from cromss.settings import overlay
from cromss.tracking import tracking_uri

ROOT = Path(__file__).parents[1]


@pytest.fixture
def head(tmp_path):
    """The dashboard's address of a Ray head that ends with the test."""
    temp = Path("/tmp") / f"cr{os.getpid()}"
    with ray_head(temp, tmp_path / "head.log", os.environ | {"RAY_AUTH_MODE": "disabled"}) as (_, dashboard):
        yield dashboard


@pytest.mark.timeout(290)
def test_a_submitted_sweep_succeeds_and_its_runs_are_in_mlflow(head, worlds, tmp_path):
    out = tmp_path / "out"
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps(overlay(TINY, {"optim": {"epochs": 1}})))
    space = tmp_path / "one.py"
    space.write_text(
        '"""Does it run as a job?"""\nfrom cromss.trials.space import grid\n\n\n'
        'def space():\n    return {"arm": grid("random", "midF")}\n'
    )
    variables = {"CROMSS_DATA": str(worlds[0]), "CROMSS_DOWNSTREAM": str(worlds[1]), "CROMSS_OUT": str(out)}
    job = submit(
        head, "--runtime-env-json", json.dumps({"env_vars": variables}), "--",
        sys.executable, "-m", "cromss.sweep", str(space), "--config", str(config),
        environment=os.environ | {"RAY_AUTH_MODE": "disabled"}, seconds=270, cwd=ROOT,
    )  # fmt: skip
    assert job.returncode == 0, job.stdout + job.stderr
    assert "succeeded" in job.stdout
    assert "midF" in job.stdout
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(out))
    runs = client.search_runs([client.get_experiment_by_name("cromss").experiment_id])
    assert {run.data.tags.get("cromss.arm") for run in runs} >= {"random", "midF"}
