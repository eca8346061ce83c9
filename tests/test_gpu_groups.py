"""Several trials at once on several groups of four GPUs, downstream runs packed on fractions of them; nobody waits for ever."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def outcome(worlds, tmp_path_factory):
    """(what the sweep printed last, who held which GPUs when) of three trials on two groups."""
    out = tmp_path_factory.mktemp("groups") / "out"
    program = [sys.executable, str(Path(__file__).with_name("gpu_groups.py")), *map(str, worlds), str(out), "3"]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(program, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    held = [json.loads(line) for line in (out / "held.jsonl").read_text().splitlines()]
    print(done.stdout)
    return json.loads(done.stdout.splitlines()[-1]), held


def most_at_once(lines):
    """GPU -> the most processes that held it at one time."""
    found = Counter()
    for line in lines:
        for gpu in line["gpus"]:
            beside = sum(gpu in other["gpus"] and other["from"] <= line["from"] < other["to"] for other in lines)
            found[gpu] = max(found[gpu], beside)
    return found


@pytest.mark.faults
@pytest.mark.timeout(290)
def test_three_trials_of_four_gpus_share_eight_and_all_are_done(outcome):
    said, held = outcome
    assert said["status"] == ["done"] * 3
    assert (said["concurrent"], said["devices"], said["unit"]) == (2, 4, "GPU-hours")
    workers = [line for line in held if line["what"] == "worker"]
    assert len(workers) == 3 * 4
    assert {len(line["gpus"]) for line in workers} == {1}
    assert set(most_at_once(workers).values()) == {1}  # a GPU is one worker's
    assert len({gpu for line in workers for gpu in line["gpus"]}) == 8  # both groups were at it


@pytest.mark.faults
@pytest.mark.timeout(290)
def test_downstream_runs_share_gpus_as_the_budget_says_and_never_more(outcome):
    said, held = outcome
    transfers = [line for line in held if line["what"] == "transfer"]
    assert len(transfers) == 3 * 8  # two modalities, four repeats
    sharing = round(1 / said["transfer_gpus"])
    assert sharing > 1
    assert max(most_at_once(transfers).values()) == sharing


@pytest.mark.faults
@pytest.mark.timeout(290)
def test_what_was_spent_is_what_four_gpus_a_trial_were_held(outcome):
    said, _ = outcome
    assert 0 < said["hours"] * 3600 <= said["wall"] * said["concurrent"] * said["devices"]
