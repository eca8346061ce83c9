"""Files that promise or unpack to more than a machine holds are refused by name, at once, in little memory."""

import io
import itertools
import json
import resource
import struct
import time
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cromss.data.store import PatchStore
from cromss.files import sha256
from cromss.journal import read_json
from cromss.networks.encoders import import_encoder, load_card, load_encoder
from cromss.pages.run import Run
from cromss.pretrain import main as pretrain
from cromss.settings import assignments, read_yaml
from cromss.training import segmenter_file


@pytest.fixture(autouse=True)
def cheap():
    """Seconds and megabytes are enough to refuse."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024  # kB; what is imported counts, too
    assert time.monotonic() - began < 60


# --- weights --------------------------------------------------------------------------------------------------------------

CARD = json.dumps({"architecture": "resnet18", "modality": "s2", "bands": ["B2"]})


def tensor(shape, end):
    return {"__metadata__": {"card": CARD}, "x": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}


HEADERS = {
    "a header of 2^60 bytes": (b"{}", 2**60),
    "a header longer than the file": (b"{}", 1000),
    "a tensor of 2^60 bytes": (tensor([2**58], 2**60), None),
    "a size that overflows": (tensor([2**32, 2**32, 2**32], 4), None),
    "a tensor beyond the file": (tensor([2**20], 2**22), None),
    "a negative size": (tensor([-1], 4), None),
    "nested JSON": (b'{"x":' * 100_000, None),
    "a nested card": (tensor([1], 4) | {"__metadata__": {"card": "[" * 200_000}}, None),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
def test_safetensors_that_promise_too_much(tmp_path, kind):
    header, length = HEADERS[kind]
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + b"1234")
    for read in (load_card, load_encoder, segmenter_file.load_card, segmenter_file.load):
        with pytest.raises(ValueError, match=r"bomb\.safetensors"):
            read(path)


def test_a_checkpoint_that_promises_a_tensor_of_an_exabyte(tmp_path):
    """A zip as torch writes it, whose program makes a view of 2^58 numbers on a storage of one."""
    import torch

    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "a.pth")
    huge = tmp_path / "bomb.pth"
    with zipfile.ZipFile(tmp_path / "a.pth") as source, zipfile.ZipFile(huge, "w") as target:
        for member in source.infolist():
            content = source.read(member)
            if member.filename.endswith("data.pkl"):
                assert content.count(b"K\x01\x85q") == 2  # BININT1 1, TUPLE1: the shape, then the strides
                content = content.replace(b"K\x01\x85q", b"\x8a\x08" + struct.pack("<q", 2**58) + b"\x85q", 1)
            target.writestr(member.filename, content)
    with pytest.raises(ValueError, match=r"bomb\.pth"):
        import_encoder(huge, modality="s2", bands="all", architecture="resnet18")


# --- stores ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(worlds, tmp_path):
    """A store to spoil, its manifest as a dict, and what writes that back."""
    folder = tmp_path / "store"
    folder.mkdir()
    for file in worlds[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())

    def write():
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return folder, manifest, write


@pytest.mark.parametrize("number", [2**31, 2**60, 2**70, -1, 1e400, "9" * 5000])
@pytest.mark.parametrize("place", ["rows", "block n", "block rows", "fold", "height", "acquisitions"])
def test_a_manifest_that_promises_too_much(copy, place, number):
    folder, manifest, write = copy
    shard = manifest["shards"][0]
    if place == "rows":
        shard["rows"] = number
    elif place == "height":
        manifest["size"][0] = number
    elif place == "acquisitions":
        shard["blocks"] = [[number, 1, "train", 0]]
    else:
        shard["blocks"][0][{"block n": 0, "block rows": 1, "fold": 3}[place]] = number
    write()
    for check in (True, False):
        with pytest.raises(ValueError, match="store"):
            PatchStore.open(folder, check=check)


def test_a_manifest_that_is_nested_without_end(copy, capsys):
    folder, *_ = copy
    (folder / "manifest.json").write_text('{"a":' * 100_000)
    assert pretrain(["--data", str(folder), "--out", str(folder / "out")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_shard_that_unpacks_to_gigabytes_is_named_before_it_is_read(copy):
    """Of the right name, size, rows and schema, and the manifest vouches for it."""
    folder, manifest, write = copy
    shard = manifest["shards"][0]
    path = folder / shard["path"]
    with pq.ParquetFile(path) as file:
        table, groups = file.read(), [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
    at = table.column_names.index("s2")
    bomb = pa.array([b"\0" * 2**18] * table.num_rows, pa.large_binary())
    spoiled = table.set_column(at, table.schema.field("s2"), bomb)
    with pq.ParquetWriter(path, table.schema, compression="zstd", use_dictionary=False) as writer:
        for start, rows in zip(itertools.accumulate([0, *groups]), groups, strict=False):
            writer.write_table(spoiled.slice(start, rows), row_group_size=rows)
    assert spoiled.nbytes > 8 * path.stat().st_size
    shard |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write()
    with pytest.raises(ValueError, match="decodes to more than its patches hold"):
        PatchStore.open(folder)


def test_a_footer_longer_than_its_file(copy):
    folder, manifest, _ = copy
    path = folder / manifest["shards"][0]["path"]
    content = path.read_bytes()
    path.write_bytes(content[:-8] + struct.pack("<I", 2**31 - 1) + content[-4:])
    with pytest.raises(ValueError, match="cannot be read"):
        PatchStore.open(folder)


# --- configurations and records -------------------------------------------------------------------------------------------

LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    + ["optim: {lr: *a9}"]
)
YAMLS = {
    "aliases": LAUGHS,
    "itself": "a: &a [*a]",
    "itself as a mapping": "a: &a {b: *a}",
    "nested": "a: " + "[" * 1500,
}


@pytest.mark.parametrize("kind", YAMLS)
def test_yaml_that_grows_when_it_is_read(tmp_path, capsys, kind):
    (file := tmp_path / "a.yaml").write_text(YAMLS[kind])
    with pytest.raises(ValueError, match=r"a\.yaml: (holds more than|is nested)"):
        read_yaml(file)
    assert pretrain(["--config", str(file), "--print-config"]) == 2
    assert len(capsys.readouterr().err) < 1000


def test_yaml_on_the_command_line_that_grows():
    with pytest.raises(ValueError, match="--set a: is nested"):
        assignments(["a=" + "[" * 1500])


def test_aliases_of_honest_size_are_read(tmp_path):
    (file := tmp_path / "a.yaml").write_text("a: &a {x: 1, y: [1, 2]}\nb: *a\nc: {<<: *a, y: 3}\n")
    assert read_yaml(file) == {"a": {"x": 1, "y": [1, 2]}, "b": {"x": 1, "y": [1, 2]}, "c": {"x": 1, "y": 3}}


def test_a_record_that_is_nested_without_end_is_none(tmp_path):
    (tmp_path / "trial.json").write_text('{"a":' * 100_000)
    assert read_json(tmp_path / "trial.json") is None


# --- pictures -------------------------------------------------------------------------------------------------------------


def npz(path, content: bytes, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive, archive.open("rgb.npy", "w", force_zip64=True) as member:
        member.write(content)
    return path


def header(shape) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "trials" / "a").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("shape", [(2**60,), (2**31, 2**31), (10**6, 10**6)])
def test_pictures_whose_header_promises_too_much(folder, shape):
    run = Run(folder)
    assert run.arrays(npz(folder / "panels.npz", header(shape) + b"1234")) == {}
    assert run.unreadable


def test_pictures_that_unpack_to_gigabytes(folder, monkeypatch):
    monkeypatch.setattr("cromss.pages.run.MAX_BYTES", 2**20)  # the same in little
    path = npz(folder / "panels.npz", header((2**19,)) + bytes(2**21))
    assert path.stat().st_size < 2**14
    run = Run(folder)
    assert run.arrays(path) == {}
    assert "decodes to gigabytes" in run.unreadable[0]


def test_pictures_that_are_a_pickle_or_no_archive(folder):
    run = Run(folder)
    np.save(folder / "a.npy", np.zeros(3))
    (folder / "a.npy").rename(folder / "a.npz")
    np.savez(folder / "b.npz", rgb=np.array([object()], dtype=object))
    for name in ("a.npz", "b.npz"):
        assert run.arrays(folder / name) == {}
    assert len(run.unreadable) == 2


def test_a_png_of_a_terapixel(folder):
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 10**6, 10**6, 8, 2, 0, 0, 0)
    (folder / "map.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IEND", b""))
    run = Run(folder)
    assert run.picture(folder / "map.png", "", False) is None
    assert run.unreadable == ["map.png"]
