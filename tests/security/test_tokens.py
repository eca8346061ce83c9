"""Ray with token authentication: who has no token, or a wrong one, runs nothing and learns nothing."""

import concurrent.futures
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from ray_head import ray_head, submit

RIGHT, WRONG = "ab" * 32, "cd" * 32
CLIENTS = {
    "right": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": RIGHT},
    "wrong": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": WRONG},
    "without": {"RAY_AUTH_MODE": "disabled"},
}
DRIVER = """
    import sys, ray
    from pathlib import Path
    ray.init(sys.argv[1], log_to_driver=False, logging_level="error")
    ray.get(ray.remote(num_cpus=0)(lambda path: Path(path).touch()).remote(sys.argv[2]))
"""


def environment(home: Path, client: str) -> dict[str, str]:
    """Of a process that finds no token but the given one, not in anybody's home either."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_", "NCCL_"))}
    return clean | CLIENTS[client] | {
        "HOME": str(home), "RAY_TMPDIR": str(home), "RAY_worker_niceness": "0", "PYTHONWARNINGS": "ignore",
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or a client takes 127.0.0.1 for the card's
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip


def run(home: Path, client: str, *words: str, seconds: int = 120) -> subprocess.CompletedProcess:
    return subprocess.run(
        words, env=environment(home, client), cwd=home, capture_output=True, text=True, timeout=seconds
    )


@pytest.fixture(scope="module")
def home():
    """A short one: Ray's sockets lie in it, whose paths are limited to 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="cr-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def head(home):
    """(address of the GCS, URL of the dashboard) of a Ray with tokens."""
    with ray_head(home / "ray", home / "head.log", environment(home, "right")) as addresses:
        yield addresses


@pytest.mark.timeout(250)
def test_only_the_right_token_brings_a_driver_or_a_job_in(head, home):
    """Side by side: a refusal takes Ray twenty seconds."""
    gcs, dashboard = head
    marks = {(what, client): home / f"{what}-{client}" for what in ("driver", "job") for client in CLIENTS}

    def attempt(what, client):
        mark = marks[what, client]
        if what == "driver":
            return run(home, client, sys.executable, "-c", textwrap.dedent(DRIVER), gcs, str(mark))
        return submit(dashboard, "--", "touch", str(mark), environment=environment(home, client), seconds=120, cwd=home)

    with concurrent.futures.ThreadPoolExecutor(len(marks)) as pool:
        done = dict(zip(marks, pool.map(lambda one: attempt(*one), marks), strict=True))
    for (what, client), process in done.items():
        said = f"{what} {client}: {process.stdout[-800:]}{process.stderr[-800:]}"
        assert (process.returncode == 0) == (client == "right"), said
        assert marks[what, client].exists() == (client == "right"), said


PATHS = (
    "/api/jobs/",
    "/api/version",
    "/nodes?view=summary",
    "/api/v0/actors",
    "/api/cluster_status",
    "/logical/actors",
)


def status(url: str, client: str, data: bytes | None = None) -> int:
    token = CLIENTS[client].get("RAY_AUTH_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, data=data, headers=headers | {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.mark.timeout(200)
@pytest.mark.parametrize("path", PATHS)
def test_the_dashboard_answers_only_to_the_right_token(head, path):
    assert status(head[1] + path, "right") == 200
    assert status(head[1] + path, "without") == 401
    assert status(head[1] + path, "wrong") in (401, 403)


@pytest.mark.timeout(200)
def test_a_job_by_plain_http_is_refused_and_not_run(head, home):
    """What CVE-2023-48022 did."""
    for client in ("without", "wrong"):
        job = {"entrypoint": f"touch {home / 'owned'}", "submission_id": f"owned-{client}"}
        assert status(f"{head[1]}/api/jobs/", client, json.dumps(job).encode()) in (401, 403)
        assert status(f"{head[1]}/api/jobs/{job['submission_id']}", "right") == 404
    assert not (home / "owned").exists()
