"""The clouds' metadata services on loopback, as strict as the real ones."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

GMT = "%a, %d %b %Y %H:%M:%S GMT"


class Service:
    """One cloud's service. Set what it says in between: `notice`, and `rebalance`, `maintenance`, `garbage`, `slow`."""

    def __init__(self, cloud: str) -> None:
        self.cloud = cloud
        self.notice: object = None  # aws: the document; gcp: bool; azure: the list of events
        self.rebalance: object = None
        self.maintenance = "NONE"
        self.garbage: bytes | None = None  # the answer to whatever is asked with the right headers
        self.slow = 0.0  # seconds
        self.away = False  # HTTP 503 to everything
        self.asked: list[str] = []
        self.address = ""

    def answer(self, method: str, path: str, headers: object) -> tuple[int, bytes]:
        self.asked.append(f"{method} {path}")
        time.sleep(self.slow)
        if self.away:
            return 503, b"Service Unavailable"
        return getattr(self, f"_{self.cloud}")(method, path, headers)

    def _aws(self, method, path, headers):
        if path == "/latest/api/token":
            if method != "PUT":
                return 405, b""
            life = headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            return (200, b"TOKEN==") if life.isdigit() and 1 <= int(life) <= 21600 else (400, b"")
        if headers.get("X-aws-ec2-metadata-token") != "TOKEN==":
            return 401, b""
        said = {
            "/latest/meta-data/spot/instance-action": self.notice,
            "/latest/meta-data/events/recommendations/rebalance": self.rebalance,
        }.get(path)
        return self._document(said) if said is not None else (404, b"<?xml version='1.0'?><html>Not Found</html>")

    def _gcp(self, method, path, headers):
        if headers.get("Metadata-Flavor") != "Google":
            return 403, b"Missing Metadata-Flavor:Google header."
        url = urlsplit(path)
        query = parse_qs(url.query)
        if query.get("wait_for_change") == ["true"]:
            before, until = self.notice, time.monotonic() + float(query["timeout_sec"][0])
            while self.notice == before and time.monotonic() < until:
                time.sleep(0.02)
        found = {
            "id": "4520031799277581759",
            "preempted": "TRUE" if self.notice else "FALSE",
            "maintenance-event": self.maintenance,
        }.get(url.path.removeprefix("/computeMetadata/v1/instance/"))
        return (404, b"") if found is None else (200, found.encode() if self.garbage is None else self.garbage)

    def _azure(self, method, path, headers):
        if headers.get("Metadata") != "true":
            return 400, b'{"error": "Bad request. Required metadata header not specified"}'
        url = urlsplit(path)
        if not parse_qs(url.query).get("api-version"):
            return 400, b'{"error": "Bad request. api-version was not specified in the request"}'
        if url.path == "/metadata/instance/compute/name":
            return 200, b"pool_3"
        if url.path == "/metadata/scheduledevents":
            return self._document({"DocumentIncarnation": 7, "Events": self.notice or []})
        return 404, b""

    def _document(self, said):
        return 200, self.garbage if self.garbage is not None else json.dumps(said).encode()


@contextlib.contextmanager
def metadata(cloud: str) -> Iterator[Service]:
    """A running service; its `address` is for CROMSS_METADATA."""
    service = Service(cloud)

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            status, body = service.answer(self.command, self.path, self.headers)
            with contextlib.suppress(OSError):  # who asked has not waited
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = _any

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
