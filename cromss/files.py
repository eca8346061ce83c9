"""Folders, on this machine or in a bucket: the few things that a store and a checkpoint ask of them.

`s3://bucket/prefix` and `gs://bucket/prefix` go through pyarrow.fs, with the usual environment: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY (or a profile, or the machine's own role), AWS_REGION, AWS_ENDPOINT_URL for a server that is not
Amazon's; GOOGLE_APPLICATION_CREDENTIALS. Anything else is a local path. An address never holds a key or a secret: it is
written into journals, reports and MLflow.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import hashlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

_REMOTE = re.compile(r"^(s3|gs|gcs)://")
_CHUNK = 8 * 2**20

# A bucket that does not answer at the first contact is a mistake, told after seconds; one that answered before and is
# silent in the middle of a run is waited for, about a minute.
_HASTY = {"attempts": 3, "silence": 3.0, "gcs_seconds": 3}
_PATIENT = {"attempts": 8, "silence": 20.0, "gcs_seconds": 60}
_CONNECT = 3.0  # seconds
_ENVIRONMENT = (
    "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS",
)  # fmt: skip
_PROBE = ".writable"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folder:
    """A folder, by its address: an absolute local path or a bucket's URI without a slash at the end.

    Local or not, a file that is written here appears whole or not at all. Methods raise OSError (FileNotFoundError where
    there is no such file); `fault` puts one into a line.
    """

    address: str

    @classmethod
    def of(cls, where: str | Path | Folder) -> Folder:
        """The folder of a path or URI. Raises ValueError for a URI of a kind that is not known, or with more in it than
        bucket and prefix."""
        if isinstance(where, Folder):
            return where
        text = str(where)
        if is_remote(text):
            return cls(_plain(text))
        if "://" in text:
            raise ValueError(
                f"{text.split('://')[0]}://...: unknown kind of address; use a path, s3://bucket/prefix or "
                "gs://bucket/prefix"
            )
        if re.match(r"^(s3|gs|gcs):/", text):
            raise ValueError(f"{text}: has one slash; a bucket's address has two: {text.replace(':/', '://', 1)}")
        return cls(str(Path(text).absolute()))

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.address}/{name}")

    @property
    def name(self) -> str:
        """The last part of its address."""
        return self.address.rsplit("/", 1)[-1]

    @property
    def local(self) -> Path | None:
        """The path of a folder on this machine; None for a bucket."""
        return None if is_remote(self.address) else Path(self.address)

    # --- reading ------------------------------------------------------------------------------------------------------

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        info = self._fs.get_file_info(self._at(name))
        return info.size if info.type == fs.FileType.File else None

    def names(self) -> list[str]:
        """Files and folders directly below, sorted; empty where the folder does not exist."""
        selector = fs.FileSelector(self._root, allow_not_found=True)
        return sorted(info.base_name for info in self._fs.get_file_info(selector))

    def read(self, name: str) -> bytes:
        """A file's content."""
        if self.local:
            return (self.local / name).read_bytes()
        with self._fs.open_input_stream(self._at(name)) as file:
            return file.read()

    def open(self, name: str) -> pa.NativeFile:
        """A file for random access, memory-mapped where it is local."""
        return pa.memory_map(self._at(name)) if self.local else self._fs.open_input_file(self._at(name))

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's content, 8 MiB at a time."""
        with self._fs.open_input_stream(self._at(name)) as file:
            while block := file.read(_CHUNK):
                yield block

    # --- writing ------------------------------------------------------------------------------------------------------

    def make(self) -> None:
        """Create it where it is local; a bucket's folders exist with their first file."""
        if self.local:
            self.local.mkdir(parents=True, exist_ok=True)

    def check_writable(self, what: str) -> None:
        """Write a byte here. Raises ValueError, beginning with `what`, when that fails."""
        try:
            self.make()
            self.write(_PROBE, b"")
            self.remove(_PROBE)
        except OSError as error:
            raise ValueError(f"{what} {self}: cannot be written ({fault(error)}); choose another") from None

    def write(self, name: str, content: bytes) -> None:
        """A whole file, on disk when this returns."""
        if not self.local:
            with self._fs.open_output_stream(self._at(name)) as file:
                file.write(content)
            return
        aside = self._aside(name)
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # the name must not reach the disk before the content
            aside.replace(self.local / name)
        finally:
            aside.unlink(missing_ok=True)

    def put(self, file: Path, name: str) -> None:
        """Bring a local file here; where this is local too it is moved."""
        if self.local:
            self._move(file, name)
        else:
            self._upload(file, name)

    def remove(self, name: str) -> None:
        """Delete a file, if it is there and may be deleted (see `_may_remove`)."""
        if self.size(name) is not None and self._may_remove(self._root):
            self._fs.delete_file(self._at(name))

    def remove_all(self) -> None:
        """Delete the folder with all that is in it, as far as that is possible."""
        if self.local:
            shutil.rmtree(self.local, ignore_errors=True)
            return
        with contextlib.suppress(OSError):
            there = self._fs.get_file_info(self._root).type == fs.FileType.Directory
            if there and self._may_remove(self._root.rpartition("/")[0] or self._root):
                self._fs.delete_dir(self._root)

    def _may_remove(self, parent: str) -> bool:
        """Whether a removal below `parent` leaves its other files alone.

        In a bucket, Arrow writes an empty object `folder/` after every removal. A server that keeps its objects as files
        (rclone serve s3) puts a file in the folder's place then, and everything in the folder is gone.
        """
        if self.local:
            return True
        known = kind, bucket, _ = self._bucket
        if known not in _REMOVES:
            _REMOVES[known] = kind != "s3" or _takes_folders(_client(kind, bucket, **_HASTY), f"{parent}/.folder")
            if not _REMOVES[known]:
                _log.warning("%s: the server cannot delete without harm; what is no longer needed stays there", self)
        return _REMOVES[known]

    def _move(self, file: Path, name: str) -> None:
        target = self.local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as written:
            os.fsync(written.fileno())
        try:
            file.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            aside = self._aside(name)  # another file system
            try:
                shutil.copyfile(file, aside)
                with aside.open("rb") as copied:
                    os.fsync(copied.fileno())
                aside.replace(target)
            finally:
                aside.unlink(missing_ok=True)
            file.unlink()

    def _upload(self, file: Path, name: str) -> None:
        try:
            with file.open("rb") as source, self._fs.open_output_stream(self._at(name)) as target:
                shutil.copyfileobj(source, target, _CHUNK)
        except BaseException:
            # Arrow finishes what it has begun, also when reading `file` failed half-way.
            if self._half_there(name, file):
                self.remove(name)
            raise

    def _half_there(self, name: str, file: Path) -> bool:
        try:
            return self.size(name) not in (None, file.stat().st_size)
        except OSError:
            return False

    def _aside(self, name: str) -> Path:
        target = self.local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.part")

    @property
    def _fs(self) -> fs.FileSystem:
        if self.local:
            return _LOCAL
        return _reached(*self._bucket)

    @property
    def _bucket(self) -> tuple[str, str, tuple[str | None, ...]]:
        kind, _, path = self.address.partition("://")
        return kind, path.split("/")[0], tuple(map(os.environ.get, _ENVIRONMENT))

    @property
    def _root(self) -> str:
        return self.address.partition("://")[2] or self.address

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


def is_remote(address: str | Path) -> bool:
    """Whether an address is a bucket's."""
    return bool(_REMOTE.match(str(address)))


def sha256(path: Path) -> str:
    """Of a local file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fault(error: BaseException) -> str:
    """What an error of a file or a bucket says, in one line: what is wrong and, for a bucket, where to look."""
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    if detail := re.search(r"Detail: \[errno \d+\] (.*)", text):
        return detail[1]
    if refused(error):
        which = "GOOGLE_APPLICATION_CREDENTIALS" if "google" in text else "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"
        return f"access denied: check the credentials ({which}) and what they may do there"
    if "Could not create a OAuth2 access token" in text:
        return "no credentials for Google: set GOOGLE_APPLICATION_CREDENTIALS"
    if "NO_SUCH_BUCKET" in text:
        return "no such bucket"
    if "HTTP status 301" in text:
        return "the bucket is in another region: set AWS_REGION"
    if "NETWORK_CONNECTION" in text or "google::cloud" in text:
        why = re.search(r"(?:Details: |CURL error \[\d+\]=)([^\[{]*?)(?: error_info|$)", text)
        hint = "AWS_ENDPOINT_URL, " if "AWS" in text else ""
        return f"no answer: {why[1] if why else text[:120]}; check {hint}the network"
    return re.sub(r" \(Request ID: .*?\)", "", text)[:200]


def unavailable(error: BaseException) -> bool:
    """Whether a bucket did not deliver, which says nothing about what lies in it."""
    return bool(re.search(r"AWS Error|google::cloud|^no such bucket", str(error)))


def refused(error: BaseException) -> bool:
    """Whether a bucket answered that these credentials may not do this. A refused HEAD request comes without a reason."""
    return bool(
        re.search(
            r"ACCESS_DENIED|SIGNATURE_DOES_NOT_MATCH|INVALID_(ACCESS_KEY_ID|CLIENT_TOKEN_ID|SIGNATURE)|EXPIRED_TOKEN|"
            r"UNRECOGNIZED_CLIENT|MISSING_AUTHENTICATION_TOKEN|HTTP status 40[013]\) during Head|PERMISSION_DENIED|"
            r"UNAUTHENTICATED",
            str(error),
        )
    )


def _plain(text: str) -> str:
    """A bucket's address, without slashes at its end. Nothing of a refused one is repeated: it may hold a secret."""
    kind, _, path = text.partition("://")
    bucket, *keys = path.rstrip("/").split("/")
    if "@" in bucket or ":" in bucket or "?" in path or "#" in path:
        raise ValueError(
            f"{kind}://...: an address is bucket and prefix, nothing else; credentials and server go into the "
            "environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL"
        )
    if not bucket or any(key in ("", ".", "..") for key in keys):
        raise ValueError(f"{text}: is no bucket's address; it looks like {kind}://bucket/prefix")
    return f"{kind}://{path.rstrip('/')}"


# --- clients ----------------------------------------------------------------------------------------------------------

_LOCAL = fs.LocalFileSystem()
_REMOVES: dict[tuple[str, str, tuple[str | None, ...]], bool] = {}  # of each bucket: whether removing is harmless


def _takes_folders(client: fs.FileSystem, probe: str) -> bool:
    try:
        client.create_dir(probe, recursive=False)
        client.delete_dir(probe)
    except OSError as error:
        if "NETWORK_CONNECTION" in str(error):
            raise
        return False
    return True


@functools.lru_cache(maxsize=32)
def _reached(kind: str, bucket: str, environment: tuple[str | None, ...]) -> fs.FileSystem:
    """The client of a bucket that exists and answers. Raises OSError."""
    try:
        found = _client(kind, bucket, **_HASTY).get_file_info(bucket).type
    except OSError as error:
        if not refused(error):
            raise
        found = None  # whoever may see one prefix of a bucket only is refused here: the request itself will tell
    if found == fs.FileType.NotFound:
        raise OSError(f"no such bucket: {bucket}")
    return _client(kind, bucket, **_PATIENT)


def _client(kind: str, bucket: str, attempts: int, silence: float, gcs_seconds: int) -> fs.FileSystem:
    """`silence` = seconds without a byte after which an attempt is given up."""
    if kind != "s3":
        return fs.GcsFileSystem(retry_time_limit=datetime.timedelta(seconds=gcs_seconds))
    return fs.S3FileSystem(
        **_server(bucket),
        connect_timeout=_CONNECT,
        request_timeout=silence,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
        allow_delayed_open=True,  # a small file is one request
        check_directory_existence_before_creation=True,  # or every removal would write an object named like its folder
    )


def _server(bucket: str) -> dict[str, Any]:
    """Which server a bucket is asked from: Amazon's region, or the endpoint that the environment names."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        # Keys are given: without this the SDK also asks the metadata service of EC2, which elsewhere never answers.
        os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return {"region": region or fs.resolve_s3_region(bucket)}
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise ValueError("AWS_ENDPOINT_URL: must be http://host:port or https://host:port, without credentials in it")
    # Many servers do not know the checksums that the SDK adds to its uploads since 2025; our files have their own.
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    return {"region": region or "us-east-1", "scheme": parts.scheme, "endpoint_override": parts.netloc}
