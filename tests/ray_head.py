"""A Ray head of a test's own, beside whatever else runs on the machine."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from ports import free_ports, of_a_head

RAY = str(Path(sys.executable).with_name("ray"))
ON_LOOPBACK_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # where the machine has an address, too


@contextlib.contextmanager
def ray_head(temp: Path, log: Path, environment: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(address of the GCS, URL of the dashboard) of a head with two CPUs and its sockets in `temp`, whose path must be short.
    It ends with the block, process group and all."""
    gcs, dashboard, *_ = ports = free_ports(6)
    local = ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={temp}"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--num-cpus=2", *of_a_head(ports), *local,
             "--object-store-memory=200000000", "--disable-usage-stats"],
            stdout=file, stderr=file, env=environment | ON_LOOPBACK_ALONE | {"RAY_raylet_start_wait_time_s": "180"},
            start_new_session=True,
        )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not _answers(f"http://127.0.0.1:{dashboard}"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(1)
        yield f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
    finally:
        process.terminate()  # alone: it ends the others in their order, each of which would else wait for one that has gone
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(dashboard: str) -> bool:
    try:
        urllib.request.urlopen(f"{dashboard}/api/version", timeout=2).close()
    except urllib.error.HTTPError as refused:  # it asks for a token
        refused.close()
    except OSError:
        return False
    return True


def submit(
    dashboard: str, *words: str, environment: dict[str, str], seconds: int, **where
) -> subprocess.CompletedProcess:
    """`ray job submit`, again while the head's agent is not there yet: its dashboard answers before that."""
    for _ in range(10):
        done = subprocess.run(
            [RAY, "job", "submit", "--address", dashboard, *words],
            env=environment, capture_output=True, text=True, timeout=seconds, **where,
        )  # fmt: skip
        if "No available agent" not in done.stdout + done.stderr:
            break
        time.sleep(3)
    return done
