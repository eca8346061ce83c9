"""What the security tests share. Where each hazard is proven:

| hazard | here | elsewhere |
|---|---|---|
| pickle as checkpoint, encoder or network | test_code_execution | networks/test_encoders |
| pickle in an LMDB | | data/test_source_authors_lmdb |
| a codec in a zarr that unpickles | | data/test_source_ssl4eo_v11 |
| objects and bombs in YAML | test_code_execution | |
| calls that run or trust what they read | test_sources_of_ours | |
| VRT and side-cars under a GeoTIFF, /vsi paths | test_hostile_rasters, test_hostile_paths | data/test_raster |
| remote and outward hrefs of STAC | | data/test_source_stac |
| bombs: GeoTIFF | | data/test_raster |
| bombs: zarr, zip slip | | data/test_source_ssl4eo_v11 |
| bombs: safetensors, Parquet, manifests, pictures | test_bombs | |
| shards outside of a store | | data/test_store |
| traversal by ids, keys, records | test_hostile_paths | networks: names of timm alone are built |
| markup and formulas in reports | test_markup | test_report |
| shells and `--reproduce` | test_hostile_paths | |
| listeners beside loopback | test_sockets | |
| Ray without, with a wrong, with the right token | test_tokens | |
| secrets in files and output | test_secrets | test_files, test_remote, test_tracking |
"""

import contextlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "data"))  # for its trees


class Listener:
    """A server on loopback that remembers who called. A test that asserts silence shows first that it would have heard."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                outer.calls.append(f"{self.command} {self.path}")
                with contextlib.suppress(OSError):
                    self.send_error(404)

            do_GET = do_HEAD = do_PUT = do_POST = do_PROPFIND = _any

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Hears every request that a hostile file provokes."""
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for Ray: the paths of its sockets are limited to 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="cr-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder that nothing may write into: beside the one that a test works in."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    yield folder
    assert not list(folder.iterdir())
