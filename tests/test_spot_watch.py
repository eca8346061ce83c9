"""The watcher hears each cloud in its own language, drains once, and outlives silence."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from fake_metadata import metadata

from cromss.spot.clouds import ADDRESS, CLOUDS, Aws, Azure, Gcp, Silent, detect
from cromss.spot.node import Raylet, raylets
from cromss.spot_watch import Watch

KINDS = tuple(CLOUDS)


def at(seconds: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)


def notice_of(kind: str, seconds: float = 100):
    """What a cloud's service holds when the machine goes in so many seconds."""
    if kind == "aws":
        return {"action": "terminate", "time": at(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")}
    return True if kind == "gcp" else [event(seconds)]


def event(seconds: float | None, *, kind: str = "Preempt", resources: object = ("other_1", "POOL_3")) -> dict:
    return {
        "EventId": "f020ba2e", "EventStatus": "Scheduled", "EventType": kind, "ResourceType": "VirtualMachine",
        "Resources": list(resources), "EventSource": "Platform", "DurationInSeconds": -1,
        "NotBefore": "" if seconds is None else format_datetime(at(seconds), usegmt=True),
    }  # fmt: skip


@pytest.fixture(params=KINDS)
def service(request, monkeypatch):
    with metadata(request.param) as service:
        monkeypatch.setenv(ADDRESS, service.address)
        yield service


@pytest.fixture
def one(monkeypatch):
    """Start a named cloud's service."""
    with contextlib.ExitStack() as stack:

        def start(kind):
            service = stack.enter_context(metadata(kind))
            monkeypatch.setenv(ADDRESS, service.address)
            return service

        yield start


class Log:
    """A watch whose drains are counted, and fail as often as `failures` says."""

    def __init__(self, cloud, failures=()):
        self.lines, self.drained, self.failures = [], [], list(failures)
        self.watch = Watch(cloud, self.drain, self.lines.append)

    def drain(self, notice, seconds):
        self.seconds = seconds
        if self.failures:
            raise ValueError(self.failures.pop(0))
        self.drained.append(notice)
        return ["abcdef0123456789"]

    def look(self, times=1):
        for _ in range(times):
            self.watch.look()


# --- the services themselves: a test against a lax server proves nothing --------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "path", "status"),
    [
        ("aws", "/latest/meta-data/spot/instance-action", 401),
        ("gcp", "/computeMetadata/v1/instance/preempted", 403),
        ("azure", "/metadata/scheduledevents?api-version=2020-07-01", 400),
    ],
)
def test_the_fake_services_refuse_a_question_without_the_cloud_s_header(one, kind, path, status):
    service = one(kind)
    service.notice = notice_of(kind)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(service.address + path, timeout=5)
    assert refused.value.code == status
    refused.value.close()


# --- one question -----------------------------------------------------------------------------------------------------------


def test_without_a_notice_there_is_none(service):
    assert CLOUDS[service.cloud]().notice() is None


@pytest.mark.parametrize(("kind", "seconds"), [("aws", 100), ("gcp", 30), ("azure", 100)])
def test_a_notice_tells_when_the_machine_goes(one, kind, seconds):
    one(kind).notice = notice_of(kind, 100)
    notice = CLOUDS[kind]().notice()
    assert notice.drains
    assert notice.until == pytest.approx(time.time() + seconds, abs=4)


def test_only_its_own_cloud_is_detected(service, monkeypatch):
    assert detect() == CLOUDS[service.cloud]()
    monkeypatch.setenv(ADDRESS, "http://127.0.0.1:9")
    assert detect() is None


def test_a_rebalance_recommendation_is_told_and_drained_only_when_asked_for(one):
    service = one("aws")
    service.rebalance = {"noticeTime": "2026-10-27T08:22:00Z"}
    assert not Aws().notice().drains
    assert Aws(rebalance=True).notice().drains
    service.notice = notice_of("aws")
    assert Aws().notice().drains  # the notice itself is what counts, once it is there


def test_live_migration_is_no_notice_and_a_stop_for_maintenance_is(one):
    service = one("gcp")
    service.maintenance = "MIGRATE_ON_HOST_MAINTENANCE"
    assert Gcp().notice() is None
    service.maintenance = "TERMINATE_ON_HOST_MAINTENANCE"
    assert Gcp().notice().drains


def test_google_s_answer_is_waited_for_and_known_at_once(one):
    service = one("gcp")
    threading.Timer(0.5, setattr, (service, "notice", True)).start()
    began = time.monotonic()
    assert Gcp().notice(wait=20)
    assert time.monotonic() - began < 5
    assert "GET /computeMetadata/v1/instance/preempted?wait_for_change=true&timeout_sec=20" in service.asked


def test_azure_s_list_is_for_many_machines(one):
    service = one("azure")
    service.notice = [event(60, resources=["pool_1", "pool_33"])]
    assert Azure().notice() is None
    service.notice = [event(600, kind="Redeploy"), event(60), event(30, resources=["pool_1"]), event(5, kind="Freeze")]
    assert Azure().notice().until == pytest.approx(time.time() + 60, abs=4)


def test_an_azure_event_that_has_begun_leaves_no_time(one):
    one("azure").notice = [event(None)]
    assert Azure().notice().until == pytest.approx(time.time(), abs=2)


def test_a_notice_without_a_readable_time_is_still_a_notice(one):
    one("aws").notice = {"action": "terminate", "time": "soon"}
    assert Aws().notice().until == pytest.approx(time.time() + 120, abs=2)


@pytest.mark.parametrize(
    "garbage", [b"<html>oops</html>", b"\xff\xfe\x00", b"[1, 2]", b"", b"[" * 60000, b'{"Events": 3}']
)
def test_garbage_is_no_notice_and_no_crash(service, garbage):
    service.notice, service.garbage = notice_of(service.cloud), garbage
    with contextlib.suppress(Silent):
        assert CLOUDS[service.cloud]().notice() is None


def test_a_slow_service_is_not_waited_for(service, monkeypatch):
    monkeypatch.setattr("cromss.spot.clouds._ask.__defaults__", (0.2, "GET", True))
    monkeypatch.setattr("cromss.spot.clouds.Gcp._value.__defaults__", (0.2,))
    monkeypatch.setattr("cromss.spot.clouds._SECONDS", 0.2)
    service.slow = 1
    began = time.monotonic()
    with pytest.raises(Silent):
        CLOUDS[service.cloud]().notice()
    assert time.monotonic() - began < 1


# --- the event over time ------------------------------------------------------------------------------------------------


def test_it_drains_once(service):
    log = Log(CLOUDS[service.cloud]())
    log.look(2)
    service.notice = notice_of(service.cloud)
    log.look(4)
    assert len(log.drained) == 1
    assert [line.split(" ")[0] for line in log.lines] == [CLOUDS[service.cloud].name.split(" ")[0], "draining"]
    assert all("s left" in line for line in log.lines)


def test_silence_withdraws_nothing_and_is_told_once(service):
    log = Log(CLOUDS[service.cloud]())
    service.notice = notice_of(service.cloud)
    log.look()
    service.away = True
    log.look(3)
    service.away = False
    log.look(2)
    assert len(log.drained) == 1
    told = log.lines[2:]
    assert len(told) == 2
    assert "HTTP 503" in told[0]
    assert "answers again" in told[1]


def test_a_withdrawn_notice_is_told_and_the_next_one_drains_again(service):
    log = Log(CLOUDS[service.cloud]())
    for _ in range(2):
        service.notice = notice_of(service.cloud)
        log.look()
        service.notice = None
        log.look(2)
    assert len(log.drained) == 2
    assert sum(line.startswith("withdrawn") for line in log.lines) == 2


def test_a_gcs_that_is_away_is_tried_again(service):
    log = Log(CLOUDS[service.cloud](), failures=["away", "away"])
    service.notice = notice_of(service.cloud)
    log.look(4)
    assert len(log.drained) == 1
    assert sum("not drained yet" in line for line in log.lines) == 1  # the same reason is told once


def test_it_gives_up_at_the_deadline(one):
    log = Log(Azure(), failures=["away"] * 9)
    one("azure").notice = [event(1)]
    log.look()
    assert log.watch.pending
    time.sleep(1.2)
    log.look(3)
    assert not log.watch.pending
    assert len(log.failures) == 7
    assert "given up" in log.lines[-1]


def test_a_withdrawal_ends_the_attempts(one):
    service = one("aws")
    log = Log(Aws(), failures=["away"] * 9)
    service.notice = notice_of("aws")
    log.look(2)
    service.notice = None
    log.look(3)
    assert len(log.failures) == 7


def test_a_recommendation_then_the_notice(one):
    service = one("aws")
    log = Log(Aws(rebalance=True))
    service.rebalance = {"noticeTime": "2026-10-27T08:22:00Z"}
    log.look(2)
    assert log.drained[0].until is None
    service.notice = notice_of("aws")
    log.look(2)
    assert len(log.drained) == 2  # again, with the deadline that is known now
    assert log.drained[1].until


# --- which node am I ----------------------------------------------------------------------------------------------------


def test_a_raylet_is_known_by_its_command_line():
    lines = [
        ["/x/ray/core/src/ray/raylet/raylet", "--node_id=ab12", "--python_worker_command=a --gcs-address=no b",
         "--gcs-address=10.0.0.5:6379"],
        ["ray::DashboardAgent", "--node_id=ff", "--gcs-address=10.0.0.5:6379"],
        ["/usr/bin/vi", "raylet", "--node_id=ee", "--gcs-address=1.1.1.1:1"],
        [],
    ]  # fmt: skip
    assert raylets(lines) == [Raylet("ab12", "10.0.0.5:6379")]


# --- the command --------------------------------------------------------------------------------------------------------


def command(*words, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_", "NCCL_"))}
    return {
        "args": [sys.executable, "-m", "cromss.spot_watch", *words],
        "env": clean | environment,
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
    }


def test_it_starts_quickly_and_without_ray():
    script = "import time; t = time.perf_counter(); import cromss.spot_watch, sys; print(time.perf_counter() - t); " \
             "print([name for name in ('ray', 'torch', 'pydantic', 'pyarrow') if name in sys.modules])"  # fmt: skip
    runs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
        for _ in range(3)
    ]
    assert all(loaded == "[]" for _, loaded in runs)
    assert min(float(seconds) for seconds, _ in runs) < 0.5


def test_sigterm_is_no_failure(one):
    service = one("gcp")  # whose question hangs
    with subprocess.Popen(**command("--every", "30", CROMSS_METADATA=service.address)) as watcher:
        try:
            until = time.monotonic() + 60
            while not any("wait_for_change" in asked for asked in service.asked) and time.monotonic() < until:
                time.sleep(0.05)
            began = time.monotonic()
            watcher.send_signal(signal.SIGTERM)
            assert watcher.wait(20) == 0
        finally:
            watcher.kill()
        assert time.monotonic() - began < 5
        assert "asking Google Cloud every 30 s" in watcher.stdout.read()


def test_a_machine_of_no_cloud_is_told_so():
    done = subprocess.run(**command("--once", CROMSS_METADATA="http://127.0.0.1:9"), timeout=60)
    assert done.returncode == 2
    assert "--cloud aws|gcp|azure" in done.stdout


def test_once_without_a_cluster_says_that_nobody_heard(one):
    """And a proxy of the environment is not asked: it would answer for its own machine."""
    service = one("aws")
    service.notice = notice_of("aws")
    proxy = dict.fromkeys(("http_proxy", "all_proxy"), "http://127.0.0.1:9")
    words = ("--once", "--node-id", "ab" * 28)
    done = subprocess.run(**command(*words, CROMSS_METADATA=service.address, no_proxy="", **proxy), timeout=120)
    assert done.returncode == 1
    assert "not drained yet" in done.stdout


# --- a real cluster -----------------------------------------------------------------------------------------------------

CLUSTER = """
    import json, os, subprocess, sys, time
    from pathlib import Path

    import ray
    from ray.cluster_utils import Cluster
    from ray.train.v2._internal.execution.preemption import _get_draining_nodes
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    leaving = cluster.add_node(num_cpus=2).node_id
    ray.init(cluster.address, log_to_driver=False, logging_level="error")

    @ray.remote(num_cpus=1)
    class Busy:  # a drained node that has nothing to do is gone at once
        def there(self):
            return ray.get_runtime_context().get_node_id()

    busy = Busy.options(scheduling_strategy=NodeAffinitySchedulingStrategy(leaving, soft=False)).remote()
    assert ray.get(busy.there.remote()) == leaving
    before = _get_draining_nodes()

    def watch(*words, **environment):
        done = subprocess.run([sys.executable, "-m", "cromss.spot_watch", "--once", *words], text=True, timeout=100,
                              env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.returncode, done.stdout

    wrong = watch("--node-id", leaving, RAY_AUTH_TOKEN="0" * 64)
    dry = watch("--dry-run")
    unharmed = _get_draining_nodes()
    right = watch("--node-id", leaving)
    until = time.time() + 20
    while not (after := _get_draining_nodes()) and time.time() < until:
        time.sleep(0.2)
    # New work does not go there any more, what is there goes on.
    @ray.remote(num_cpus=0.5)
    def where():
        return ray.get_runtime_context().get_node_id()
    places = ray.get([where.remote() for _ in range(4)])
    print("SAID", json.dumps({"leaving": leaving, "head": cluster.head_node.node_id, "before": before, "wrong": wrong,
                              "dry": dry, "unharmed": unharmed, "right": right, "after": after, "places": places,
                              "busy": ray.get(busy.there.remote())}))
"""


@pytest.mark.timeout(300)
def test_a_notice_drains_the_node_of_a_real_cluster(one, tmp_path):
    """Two nodes on this machine, with tokens; what the GCS says is read by the call that Ray Train's own watcher makes."""
    service = one("aws")
    service.notice = notice_of("aws", 600)
    (script := tmp_path / "cluster.py").write_text(textwrap.dedent(CLUSTER))
    environment = command(
        CROMSS_METADATA=service.address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="7" * 64, RAY_USAGE_STATS_ENABLED="0",
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    )["env"]  # fmt: skip
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=280)
    lines = [line for line in done.stdout.splitlines() if line.startswith("SAID ")]
    assert lines, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    said = json.loads(lines[0].removeprefix("SAID "))
    leaving, head = said["leaving"], said["head"]
    assert said["before"] == said["unharmed"] == {}
    assert said["wrong"][0] == 1, said["wrong"]
    assert "not drained yet" in said["wrong"][1]
    assert said["dry"][0] == 0, said["dry"]
    assert "would drain" in said["dry"][1]
    assert all(name[:12] in said["dry"][1] for name in (leaving, head))  # every raylet on this machine
    assert said["right"][0] == 0, said["right"]
    assert said["after"].keys() == {leaving}
    assert said["after"][leaving] / 1000 == pytest.approx(time.time() + 600, abs=120)
    assert set(said["places"]) == {head}
    assert said["busy"] == leaving
