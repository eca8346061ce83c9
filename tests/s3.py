"""Servers that speak S3 on this machine's loopback, and the fixtures that hand out their buckets.

moto's keeps everything in memory and takes any keys; `rclone serve s3` checks them. The whole test run points at moto's port
from the start, so that processes of Ray know it too, and so that no test ever asks Amazon.
"""

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

SECRET = "a-secret-that-is-never-shown"
_numbers = itertools.count()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


PORT = free_port()
ENVIRONMENT = {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}",
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_REGION": "us-east-1",
}
for name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[name]
os.environ.update(ENVIRONMENT)


class Server:
    """moto's server on a port; what is in its buckets outlives a stop."""

    def __init__(self, port: int):
        self.port, self._running = port, None

    def start(self) -> None:
        import logging

        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._running = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._running.start()

    def stop(self) -> None:
        if self._running:
            self._running.stop()
        self._running = None

    def make_bucket(self) -> str:
        """A new bucket's address."""
        name = f"bucket-{next(_numbers)}"
        client = fs.S3FileSystem(endpoint_override=f"127.0.0.1:{self.port}", scheme="http", allow_bucket_creation=True)
        client.create_dir(name)
        return f"s3://{name}"


@pytest.fixture(scope="session")
def s3() -> Iterator[Server]:
    """The server that the test run's environment names."""
    server = Server(PORT)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bucket(s3) -> str:
    """The address of a new, empty bucket."""
    return s3.make_bucket()


@contextlib.contextmanager
def rclone(folder: Path, key: str, secret: str) -> Iterator[str]:
    """`rclone serve s3` over the folders below `folder` (its buckets), for these keys alone; its endpoint."""
    port = free_port()
    command = ["rclone", "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},{secret}"]
    beside = Path(sys.executable).parent
    with (folder / "rclone.log").open("wb") as log:
        process = subprocess.Popen(command, executable=beside / "rclone", stdout=log, stderr=log)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
