"""A folder on a disk and one in a bucket behave alike; what goes wrong is one line, in seconds, without a secret."""

import errno
import os
import shutil
import socket
import threading
import time

import pyarrow as pa
import pytest
from pyarrow import fs
from s3 import SECRET, Server, free_port

from cromss import files
from cromss.files import Folder, fault, unavailable

BIG = bytes(range(256)) * 40_000  # 10 MB: more than one chunk, more than one part of an upload


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path) -> Folder:
    """An empty folder."""
    if request.param == "disk":
        return Folder.of(tmp_path / "folder")
    return Folder.of(request.getfixturevalue("bucket")) / "folder"


def said(failing) -> str:
    """The line about the OSError that `failing` ends with."""
    with pytest.raises(OSError) as caught:
        failing()
    line = fault(caught.value)
    assert "\n" not in line
    assert SECRET not in line
    assert "tester" not in line
    return line


def test_what_was_written_is_what_is_read(folder):
    folder.make()
    for name, content in (("a.bin", BIG), ("empty", b""), ("below/b", b"b")):
        folder.write(name, content)
        assert folder.size(name) == len(content)
        assert folder.read(name) == b"".join(folder.chunks(name)) == content
    with folder.open("a.bin") as file:
        assert file.size() == len(BIG)
        file.seek(1_000_003)
        assert file.read(10) == BIG[1_000_003:1_000_013]
    assert (folder / "below").read("b") == b"b"
    assert folder.names() == ["a.bin", "below", "empty"]


def test_writing_again_replaces(folder):
    folder.write("a", b"old and longer")
    folder.write("a", b"new")
    assert folder.read("a") == b"new"
    assert folder.names() == ["a"]


def test_what_is_not_there_is_none_or_file_not_found(folder):
    assert folder.names() == []
    assert folder.size("a") is None
    for read in (folder.read, folder.open, lambda name: list(folder.chunks(name))):
        with pytest.raises(FileNotFoundError) as caught:
            read("a")
        assert fault(caught.value) == "No such file or directory"
        assert not unavailable(caught.value)
    folder.remove("a")
    folder.remove_all()


def test_removing_takes_a_file_or_the_whole_folder(folder):
    for name in ("a", "b", "below/c"):
        folder.write(name, b"x")
    folder.remove("a")
    assert folder.names() == ["b", "below"]
    (folder / "below").remove_all()
    assert folder.names() == ["b"]
    folder.remove_all()
    assert folder.names() == []


def test_a_file_is_brought_whole(folder, tmp_path):
    for content in (BIG, b"another"):
        file = tmp_path / "file"
        file.write_bytes(content)
        folder.put(file, "below/a")
        assert folder.read("below/a") == content
    assert (folder / "below").names() == ["a"]


def test_a_folder_that_can_be_written_passes_and_is_left_empty(folder):
    folder.check_writable("--checkpoints")
    assert folder.names() == []


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    folder = Folder.of(tmp_path)
    folder.write("a", b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    assert said(lambda: folder.write("a", b"new")) == "No space left on device"
    assert folder.names() == ["a"]
    assert folder.read("a") == b"old"


def other_file_system(monkeypatch, source):
    replace = files.Path.replace

    def refuses(path, target):
        if path == source:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(path, target)

    monkeypatch.setattr(files.Path, "replace", refuses)


def test_a_file_of_another_file_system_is_copied_aside_and_then_named(tmp_path, monkeypatch):
    folder, file = Folder.of(tmp_path / "folder"), tmp_path / "file"
    file.write_bytes(BIG)
    other_file_system(monkeypatch, file)
    folder.put(file, "a")
    assert folder.names() == ["a"]
    assert folder.read("a") == BIG
    assert not file.exists(), "moved, as within one file system"


def test_a_copy_from_another_file_system_that_fails_leaves_nothing(tmp_path, monkeypatch):
    folder, file = Folder.of(tmp_path / "folder"), tmp_path / "file"
    file.write_bytes(b"x")
    other_file_system(monkeypatch, file)

    def half(source, target):
        target.write_bytes(b"hal")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", half)
    assert said(lambda: folder.put(file, "a")) == "No space left on device"
    assert folder.names() == []
    assert file.exists()


def test_an_upload_that_cannot_be_read_to_its_end_is_not_there(bucket, tmp_path, monkeypatch):
    folder, file = Folder.of(bucket) / "f", tmp_path / "file"
    file.write_bytes(BIG)

    def breaks(source, target, length):
        target.write(source.read(9_000_000))
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "copyfileobj", breaks)
    assert said(lambda: folder.put(file, "a")) == "Input/output error"
    assert folder.size("a") is None


# --- addresses --------------------------------------------------------------------------------------------------------


def test_an_address_is_a_bucket_or_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(Folder.of("store")) == str(tmp_path / "store")
    assert str(Folder.of(tmp_path)) == str(tmp_path)
    for text in ("s3://bucket", "s3://bucket/a/b", "gs://bucket/a", "gcs://bucket/a"):
        assert str(Folder.of(f"{text}/")) == text
        assert Folder.of(text).local is None
        assert str(Folder.of(text) / "c") == f"{text}/c"
    assert (Folder.of("s3://bucket/a/b").name, Folder.of("/a/b").name) == ("b", "b")
    assert Folder.of(Folder.of("s3://bucket")) == Folder.of("s3://bucket")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"s3://key:{SECRET}@bucket/a", "credentials and server go into the environment: AWS_ACCESS_KEY_ID"),
        (f"s3://bucket/a?secret_key={SECRET}", "credentials and server go into the environment"),
        (f"ftp://key:{SECRET}@host/a", "unknown kind of address; use a path, s3://bucket/prefix or gs://bucket/prefix"),
        ("s3://", "is no bucket's address; it looks like s3://bucket/prefix"),
        ("gs:///a", "is no bucket's address; it looks like gs://bucket/prefix"),
        ("s3://bucket/../other", "is no bucket's address"),
        ("s3://bucket//a", "is no bucket's address"),
        ("s3:/bucket/a", "has one slash; a bucket's address has two: s3://bucket/a"),
    ],
)
def test_what_is_no_address_is_refused_without_repeating_a_secret(text, line):
    with pytest.raises(ValueError) as caught:
        Folder.of(text)
    assert line in str(caught.value)
    assert SECRET not in str(caught.value)


def test_google_cloud_storage_goes_the_same_way():
    """No server for it runs here: the client is made, nothing is asked."""
    for kind in ("gs", "gcs"):
        folder = Folder.of(f"{kind}://bucket/a/b")
        assert folder._root == "bucket/a/b"
        assert folder._at("c") == "bucket/a/b/c"
        assert isinstance(files._client(kind, "bucket", **files._HASTY), fs.GcsFileSystem)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "ftp://host", f"http://key:{SECRET}@host", "http://"])
def test_an_endpoint_that_is_none_is_refused(monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ValueError, match="AWS_ENDPOINT_URL: must be http://host:port or https://host:port") as caught:
        Folder.of("s3://bucket").names()
    assert SECRET not in str(caught.value)


def test_a_bucket_of_amazon_is_asked_for_in_its_own_region(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert files._server("bucket") == {"region": "us-east-1"}
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setattr(fs, "resolve_s3_region", lambda bucket: f"where {bucket} is")
    assert files._server("bucket") == {"region": "where bucket is"}


def test_the_metadata_service_is_asked_only_where_no_keys_are_given(monkeypatch):
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    with monkeypatch.context() as without:
        without.delenv("AWS_ACCESS_KEY_ID")
        files._server("bucket")
        assert "AWS_EC2_METADATA_DISABLED" not in os.environ, "a machine's own role comes from there"
    files._server("bucket")
    assert os.environ["AWS_EC2_METADATA_DISABLED"] == "true"


# --- what goes wrong --------------------------------------------------------------------------------------------------


def every_use(folder: Folder):
    return (folder.names, lambda: folder.read("a"), lambda: folder.write("a", b""), lambda: folder.size("a"),
            lambda: folder.open("a"))  # fmt: skip


def test_a_missing_bucket_is_said(s3):
    folder = Folder.of("s3://no-such-bucket/a")
    assert {said(use) for use in every_use(folder)} == {"no such bucket: no-such-bucket"}
    with pytest.raises(ValueError, match=r"--checkpoints s3://no-such-bucket/a: cannot be written \(no such bucket"):
        folder.check_writable("--checkpoints")


def test_a_server_that_is_down_is_said_within_seconds(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    began = time.monotonic()
    line = said(Folder.of("s3://bucket").names)
    assert time.monotonic() - began < 10
    assert line.startswith("no answer: ")
    assert "check AWS_ENDPOINT_URL, the network" in line


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(files, "_HASTY", files._HASTY | {"attempts": 1, "silence": 1.0})
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(OSError) as caught:
            Folder.of("s3://bucket").names()
    assert time.monotonic() - began < 10
    assert fault(caught.value).startswith("no answer: ")
    assert unavailable(caught.value), "which is no damage of what lies there"


def test_a_bucket_that_answered_before_is_waited_for(monkeypatch):
    server = Server(free_port())
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    folder = Folder.of(server.make_bucket())
    folder.write("a", b"still here")
    server.stop()
    back = threading.Timer(1.0, server.start)
    back.start()
    try:
        assert folder.read("a") == b"still here"
    finally:
        back.join()
        server.stop()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("When uploading: AWS Error NO_SUCH_BUCKET during PutObject operation: none"), "no such bucket"),
        (OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."), "access denied: check"),
        (OSError("AWS Error UNKNOWN (HTTP status 301) during HeadObject operation"), "set AWS_REGION"),
        (OSError("google::cloud::Status(PERMISSION_DENIED: none)"), "GOOGLE_APPLICATION_CREDENTIALS"),
        (OSError("AWS Error SLOW_DOWN during GetObject operation: slow (Request ID: abc)"), "operation: slow"),
        (pa.ArrowInvalid("Parquet\n  magic bytes"), "Parquet magic bytes"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    ],
)
def test_every_fault_is_one_line(error, line):
    assert line in fault(error)
    assert "\n" not in fault(error)
    assert "Request ID" not in fault(error)
