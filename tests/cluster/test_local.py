"""A cluster on this machine, in its own namespaces: it starts, wants its token, listens on loopback, runs a job, goes."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from shipped import CLUSTER

LOCAL = CLUSTER / "local.sh"

STORY = """
set -u
ip link set lo up
mount -t tmpfs -o size=1g tmpfs /dev/shm
sleep 1000 & bystander=$!                       # somebody else's process
env -u CROMSS_LOCAL RAY_raylet=1 sleep 1000 & other=$!
bash {local} up 2 || exit 1
bash {local} up 2; echo "up again: $?"
ss -Hltn | sed 's/^/socket /'
stat -c 'token %a' "$CROMSS_LOCAL/token"
eval "$(bash {local} env | sed 's/RAY_ADDRESS/ADDRESS/')"
for token in "$(cat "$RAY_AUTH_TOKEN_PATH")" wrong ""; do
  python - "$ADDRESS/api/jobs/" "$token" << 'END'
import sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": f"Bearer {sys.argv[2]}"} if sys.argv[2] else {})
try:
    print(f"token {sys.argv[2][:5]!r}:", urllib.request.urlopen(request).status)
except urllib.error.HTTPError as error:
    print(f"token {sys.argv[2]!r}:", error.code)
END
done
bash {local} submit -- python -c 'import ray, cromss; ray.init(); f = ray.remote(lambda: 7)
print("answer", ray.get(f.remote()), "CPUs", ray.cluster_resources()["CPU"], "nodes", len(ray.nodes())); raise SystemExit(3)'
echo "a job that fails: $?"
tr '\\0' '\\n' < "/proc/$(cat "$CROMSS_LOCAL/head.pid")/cmdline" | grep -c "$(cat "$CROMSS_LOCAL/token")"; echo "in ps: $?"
bash {local} down; echo "down: $?"
kill -0 $bystander $other && echo "others live"
pgrep -c 'raylet|gcs_server'; echo "left: $?"
bash {local} status; echo "status: $?"
ls "$CROMSS_LOCAL"
"""


@pytest.fixture(scope="module")
def told():
    """What it says from its start to its end."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("namespaces need root, unshare (util-linux) and ip (iproute2)")
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--mount"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("namespaces cannot be made here")
    path = f"{Path(shutil.which('ray') or CLUSTER.parent / '.venv/bin/ray').parent}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(prefix="local-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
        env |= {"CROMSS_LOCAL": f"{folder}/c", "PATH": path, "HOME": folder}
        done = subprocess.run(
            [*inside, "bash", "-c", STORY.replace("{local}", str(LOCAL))], env=env, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=280,
        )  # fmt: skip
    print(done.stdout)
    assert "2 workers of 1 CPUs" in done.stdout
    return done.stdout


def test_it_listens_on_loopback_alone(told):
    sockets = re.findall(r"^socket LISTEN\s+\S+\s+\S+\s+(\S+):\d+\s", told, re.M)
    assert len(sockets) > 10
    assert {address.strip("[]").removeprefix("::ffff:") for address in sockets} == {"127.0.0.1"}


def test_it_wants_its_token(told):
    assert re.search(r"^token '[0-9a-f]{5}': 200$", told, re.M)
    assert "token 'wrong': 403" in told
    assert "token '': 401" in told
    assert "token 600" in told
    assert "in ps: 1" in told


def test_a_job_runs_on_its_workers_and_its_status_is_the_jobs(told):
    assert "answer 7 CPUs 2.0 nodes 3" in told
    assert re.search(r"^a job that fails: [^0]", told, re.M)


def test_it_starts_once_and_ends_only_what_it_started(told):
    assert "up again: 2" in told
    assert "down: 0" in told
    assert "others live" in told
    assert re.search(r"^0\nleft: 1$", told, re.M)
    assert "status: 2" in told
    assert "head.log" in told.splitlines()
    assert not {"token", "id", "head.pid"} & set(told.splitlines())
