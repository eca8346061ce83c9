"""`ray up` for real, from a laptop, over ssh, to machines of one's own: what cluster/aws.yaml says, but for the cloud.

Four hosts: a head, a worker, a machine that serves MLflow, and the laptop. The launcher copies the project, the token and the
credentials, runs the setup, starts the head; the head does the same to its worker. A job is submitted, sweeps over both, and
what it found is in MLflow's PostgreSQL and bucket. At the end `ray down` leaves no process of Ray.

The hosts share a disk, as machines with an NFS folder do, and their Python is there already, as in an image.
"""

import hashlib
import json
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import machines
import mlflow_host
import pytest
import yaml
from machines import REPOSITORY, home, private
from netlab import hosts
from tiny import TINY

from cromss.journal import read_trials
from cromss.settings import overlay

HEAD, WORKER, MLFLOW, LAPTOP = range(4)
ADMIN, TRAINER = "an-admin-of-the-team", "a-trainer-of-the-team"

SPACE = '''
"""Does CromSS select anything on an Earth of 28 places?"""

from ray import tune

BASE = {base}
WORLD = {{"places": 28, "size": 32, "train": 16, "test": 8}}


def space():
    return {{"arm": tune.grid_search(["midF", "CromSS-midF"])}}
'''

# On the laptop, before the job: the service lets in whom it knows, under its own name, and gets a user for the job.
KNOCK = """
import sys, json, time, urllib.error, urllib.request
from base64 import b64encode
address, admin, trainer = sys.argv[1:]

def ask(path, user=None, body=None, **headers):
    if user:
        headers["Authorization"] = "Basic " + b64encode(user.encode()).decode()
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, headers | {"Content-Type": "application/json"})
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0

until = time.monotonic() + 180
while ask("/health") != 200 and time.monotonic() < until:
    time.sleep(0.5)
search = "/api/2.0/mlflow/experiments/search"
one = {"max_results": 1}
found = {
    "health": ask("/health"),
    "nobody": ask(search, body=one),
    "wrong": ask(search, "admin:wrong-password", one),
    "other host": ask(search, "admin:" + admin, one, Host="evil.example"),
    "jobs": ask("/ajax-api/3.0/jobs/x", "admin:" + admin),
    "admin": ask(search, "admin:" + admin, one),
    "new user": ask("/api/2.0/mlflow/users/create", "admin:" + admin, {"username": "trainer", "password": trainer}),
}
print(json.dumps(found))
"""

# On the laptop, after the job: what MLflow knows.
LOOK = """
import json
from mlflow import MlflowClient
client = MlflowClient()
runs = client.search_runs([client.get_experiment_by_name("cromss").experiment_id])
(parent,) = [run for run in runs if run.data.tags["cromss.kind"] == "sweep"]
artifacts = [one.path for one in client.list_artifacts(parent.info.run_id)]
told = [{"kind": run.data.tags["cromss.kind"], "run": run.data.tags["cromss.run"], "status": run.info.status,
         "metrics": run.data.metrics} for run in runs]
print(json.dumps({"runs": told, "artifacts": artifacts}))
"""


class Timeline:
    """When each step began and how long it took."""

    def __init__(self) -> None:
        self.began, self.steps = time.monotonic(), []

    @contextmanager
    def step(self, name: str):
        start = time.monotonic()
        try:
            yield
        finally:
            self.steps.append((start - self.began, time.monotonic() - start, name))

    def __str__(self) -> str:
        end = max(start + seconds for start, seconds, _ in self.steps)
        lines = []
        for start, seconds, name in self.steps:
            before, long = round(40 * start / end), max(1, round(40 * seconds / end))
            lines.append(f"{start:6.0f} s {seconds:5.0f} s  {' ' * before + '#' * long:41}  {name}")
        return "\n".join(["  began   took", *lines])


def cluster_file(lab, key: str, name: str, job: Path) -> dict:
    """cluster/aws.yaml on machines that are there already: its own files, setup and start, another provider."""
    shipped = yaml.safe_load((REPOSITORY / "cluster/aws.yaml").read_text())
    for cloudy in ("available_node_types", "head_node_type", "max_workers", "auth", "provider"):
        del shipped[cloudy]
    setup = shipped["setup_commands"]
    shipped["setup_commands"] = [line for line in setup if "share.sh" not in line]  # the common folder is there
    assert len(shipped["setup_commands"]) == len(setup) - 1
    shipped["setup_commands"] += ["~/venv/bin/pip check", "date +%s >> ~/set-up"]
    shipped["file_mounts"] |= {"~/.mlflow/credentials": "~/.mlflow/credentials", "~/job": str(job)}
    return shipped | {
        "cluster_name": name,
        "provider": {"type": "local", "head_ip": lab.host(HEAD).ip, "worker_ips": [lab.host(WORKER).ip]},
        "auth": {"ssh_user": "root", "ssh_private_key": key},
    }


def job_folder(path: Path, address: str) -> Path:
    """What is submitted: a space, and where its runs are tracked. Passwords are not in it."""
    path.mkdir()
    (path / "pair.py").write_text(SPACE.format(base=overlay(TINY, {"optim": {"epochs": 2}})))
    (path / "runtime_env.yaml").write_text(yaml.safe_dump({"env_vars": {"MLFLOW_TRACKING_URI": address}}))
    return path


def active(status: str) -> int:
    """How many nodes `ray status` counts as active."""
    section = status.partition("Active:")[2].partition("Pending:")[0]
    return sum(int(count) for count in re.findall(r"^ (\d+) ", section, re.MULTILINE))


def wait(true: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"not so within {seconds:g} s"
        time.sleep(1)


def on(lab, number: int, *programs: str) -> list[str]:
    """Those of these programs that run on a host."""
    listed = lab.call(number, ["bash", "-c", r"cat /proc/[0-9]*/cmdline 2> /dev/null | tr '\0' '\n'"]).split()
    return [program for program in programs if any(Path(word).name == program for word in listed)]


def project(lab, number: int) -> dict[str, bytes]:
    """The files of the project as they were copied to a host: their content."""
    folder = home(lab, number) / "cromss"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.py")}


def check(found: dict, out: Path, service: mlflow_host.Service) -> None:
    """MLflow tells what the sweep's own records say; it has it from PostgreSQL and the bucket."""
    trials = read_trials(out)
    assert [trial["status"] for trial in trials] == ["done", "done"]
    runs, kinds = found["runs"], [run["kind"] for run in found["runs"]]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "sweep": 1, "trial": 2, "downstream": 4, "configuration": 2
    }  # fmt: skip
    assert {run["status"] for run in runs} == {"FINISHED"}
    for trial in trials:
        (run,) = [run for run in runs if run["kind"] == "trial" and run["run"].endswith(trial["key"])]
        for judged in trial["downstream"]:
            assert run["metrics"][f"test/{judged['modality']}/frozen/miou"] == pytest.approx(judged["miou"])
    assert found["artifacts"] == ["report.html"]
    assert service.sql("SELECT count(*) FROM runs") == str(len(runs))
    (report,) = service.bucket.rglob("report.html")
    assert report.read_bytes() == (out / "report.html").read_bytes()


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_from_ray_up_over_a_job_to_its_result_and_ray_down(tmp_path, capsys):
    if reason := machines.lacking() or mlflow_host.lacking():
        pytest.skip(reason)
    times, name = Timeline(), f"cromss-{secrets.token_hex(3)}"
    # Under autoscaler v2 the `local` provider never starts a worker: nobody tells it that the head runs.
    laptop = {
        "PATH": machines.PATH, "HOME": str(Path.home()), "TMPDIR": "/tmp/ray", "TERM": "dumb", "LC_ALL": "C.UTF-8",
        "RAY_AUTH_MODE": "token", "RAY_UP_enable_autoscaler_v2": "0",
    }  # fmt: skip
    out = tmp_path / "out"
    with hosts(4, tmp_path / "lab") as lab, mlflow_host.mlflow(lab, MLFLOW, ADMIN) as service:

        def on_laptop(*command, timeout=300, **more):
            return lab.call(LAPTOP, command, timeout=timeout, env=laptop | more, cwd=str(REPOSITORY))

        def ray(*command, timeout=300):
            return on_laptop("ray", *command, timeout=timeout)

        try:
            with times.step("keys, machines"):
                key = machines.new_key(home(lab, LAPTOP) / ".ssh" / "cromss.pem")
                for number in (HEAD, WORKER):
                    machines.open_to(lab, number, key)
                    machines.image(lab, number)
                private(home(lab, LAPTOP) / ".ray" / "auth_token", secrets.token_hex(32))
                credentials = f"[mlflow]\nmlflow_tracking_username = trainer\nmlflow_tracking_password = {TRAINER}\n"
                private(home(lab, LAPTOP) / ".mlflow" / "credentials", credentials)
                file = tmp_path / "cluster.yaml"
                job = job_folder(tmp_path / "job", service.address)
                file.write_text(yaml.safe_dump(cluster_file(lab, "~/.ssh/cromss.pem", name, job)))
            with times.step("ray up -y"):
                ray("up", "-y", "--no-config-cache", file)
            with times.step("MLflow answers"):
                knocked = json.loads(on_laptop(sys.executable, "-c", KNOCK, service.address, ADMIN, TRAINER))
                assert knocked["health"] == knocked["admin"] == knocked["new user"] == 200, knocked
                assert knocked["nobody"] == knocked["wrong"] == 401, knocked
                assert knocked["other host"] == 403, knocked
                assert knocked["jobs"] == 404, knocked
            with times.step("the worker joins"):
                wait(lambda: active(ray("exec", file, "ray status")) == 2, 240)
                everything = ["raylet", "cromss.spot_watch"]  # the watcher is the last to start
                wait(lambda: on(lab, WORKER, *everything) == everything, 60)
            assert on(lab, HEAD, *everything) == everything
            for number in (HEAD, WORKER):
                assert (home(lab, number) / "set-up").exists()
                assert (home(lab, number) / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
            assert project(lab, HEAD) == project(lab, WORKER)  # the head has handed on what it was given
            assert "cromss/sweep.py" in project(lab, WORKER)
            with times.step("ray job submit"):
                submit = (
                    f"cd ~/job && ray job submit --address http://127.0.0.1:8265 --working-dir . "
                    f"--runtime-env runtime_env.yaml -- python -m cromss.sweep pair.py --out {out}"
                )
                said = ray("exec", file, submit, timeout=400)
            with times.step("what MLflow has"):
                lines = on_laptop(sys.executable, "-c", LOOK, MLFLOW_TRACKING_URI=service.address).splitlines()
                check(json.loads(lines[-1]), out, service)
            assert ADMIN not in said
            assert TRAINER not in said
            with times.step("ray down -y"):
                ray("down", "-y", file)
            assert not on(lab, HEAD, "gcs_server", "raylet")
            with times.step("the worker's node ends"):  # nobody tells it: it gives up on a head that is gone
                wait(lambda: not on(lab, WORKER, "raylet"), 150)
            assert on(lab, HEAD, "sshd")  # the machines themselves are as they were
            assert on(lab, WORKER, "sshd")
        finally:
            with capsys.disabled():
                print(f"\n{times}")
            for path in Path("/tmp").glob(f"ray_ssh_*/{hashlib.sha256(name.encode()).hexdigest()[:10]}"):
                shutil.rmtree(path)
