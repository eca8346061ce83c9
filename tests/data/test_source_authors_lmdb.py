"""The authors' LMDBs are read as data: their codes arrive unchanged, and no pickle runs anything."""

import io
import os
import pickle
import re
import struct
import sys

import numpy as np
import pytest
from trees import classes, optical, radar

from cromss.data.ingestion import ingest
from cromss.data.patch import Patch
from cromss.data.plain_pickle import UnsafePickle, read_plain_pickle
from cromss.data.sources.authors_lmdb import AuthorsLmdb
from cromss.data.sources.base import Skipped
from cromss.data.store import PatchStore
from cromss.landcover import IGNORE
from cromss.sensors import SENTINEL1, SENTINEL2

lmdb = pytest.importorskip("lmdb", reason="needs the optional library lmdb")

SIDE = 24
FILES = {"s1": "0k_251k_uint8_s1.lmdb", "s2": "0k_251k_uint8_s2c.lmdb", "label": "dw_labels.lmdb"}


def codes(what: str, seed: int) -> np.ndarray:
    """What the authors' scripts store for one season: uint8 (bands, H, W) or (H, W)."""
    if what == "label":
        return classes((SIDE, SIDE), seed)
    if what == "s1":
        return SENTINEL1.encode(radar((SIDE, SIDE), seed), SENTINEL1.bands)
    return SENTINEL2.encode(optical((SIDE, SIDE), seed), SENTINEL2.bands)


def value(what: str, number: int, seasons: int = 4, **pickled) -> bytes:
    """An entry as the authors' scripts write it. Ids of images are Python integers, of labels numpy.int64."""
    stack = np.stack([codes(what, 10 * number + season) for season in range(seasons)])
    return pickle.dumps((stack.tobytes(), stack.shape, np.int64(number) if what == "label" else number), **pickled)


def write(path, entries: dict) -> None:
    """An LMDB of {key: value}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for key, pickled in entries.items():
            transaction.put(str(key).encode(), pickled)


def lmdb_tree(root, ids=(7, 251078, 3), **changed):
    """The three LMDBs of a few locations; `changed` maps s1, s2 or label to {key: value} that stand instead."""
    for what, name in FILES.items():
        write(root / name, {i: value(what, number) for i, number in enumerate(ids)} | changed.get(what, {}))
    return root


def read_all(source) -> dict[str, Patch | Skipped]:
    found = [one for location in source.locations() for one in source.read(location)]
    return {one.patch_id if isinstance(one, Patch) else one.name: one for one in found}


# --- what is in the files is in the patches ---------------------------------------------------------------------------


def test_every_season_arrives_with_the_codes_of_the_authors(tmp_path):
    found = read_all(AuthorsLmdb(path=lmdb_tree(tmp_path)))
    assert list(found) == [f"{place:07d}/{season}" for place in (3, 7, 251078) for season in range(4)]
    for patch in found.values():
        seed = 10 * int(patch.location_id) + int(patch.acquisition)
        for what, sensor in (("s1", SENTINEL1), ("s2", SENTINEL2)):
            np.testing.assert_array_equal(sensor.encode(patch.images[what], sensor.bands), codes(what, seed))
        np.testing.assert_array_equal(patch.label, codes("label", seed))
        assert (patch.notes, patch.crs) == ({"s1": "8-bit codes", "s2": "8-bit codes"}, "")


def test_a_store_of_some_bands_holds_the_codes_that_were_read(tmp_path):
    source = AuthorsLmdb(path=lmdb_tree(tmp_path / "tree"), bands="9")
    ingest(source, tmp_path / "store")
    for patch in (found := PatchStore.open(tmp_path / "store").sample(10)):
        seed = 10 * int(patch.location_id) + int(patch.acquisition)
        np.testing.assert_array_equal(SENTINEL1.encode(patch.images["s1"] + 1e-3, SENTINEL1.bands), codes("s1", seed))
        nine = SENTINEL2.select("9")
        np.testing.assert_array_equal(
            SENTINEL2.encode(patch.images["s2"] + 0.5, nine), codes("s2", seed)[SENTINEL2.indices(nine)]
        )
        np.testing.assert_array_equal(patch.label, codes("label", seed))
    assert len(found) == 3


def test_entries_that_the_authors_script_left_out_are_no_locations(tmp_path):
    lmdb_tree(tmp_path, ids=(7,))
    write(tmp_path / FILES["label"], {4: value("label", 9)})
    for what in ("s1", "s2"):
        write(tmp_path / FILES[what], {4: value(what, 9), 5: value(what, 11)})
    assert [location.id for location in AuthorsLmdb(path=tmp_path).locations()] == ["0000007", "0000009"]


def test_files_of_other_names_are_read_once_named(tmp_path):
    lmdb_tree(tmp_path)
    (tmp_path / FILES["label"]).rename(tmp_path / "other.lmdb")
    with pytest.raises(ValueError, match="dw_labels.lmdb: cannot be read"):
        AuthorsLmdb(path=tmp_path).locations()
    assert len(AuthorsLmdb(path=tmp_path, label="other.lmdb").locations()) == 3
    with pytest.raises(ValueError, match="must be a name in the folder"):
        AuthorsLmdb(path=tmp_path, label="../other.lmdb")


def test_unlabelled_pixels_are_ignored(tmp_path):
    labels = np.stack([codes("label", season) for season in range(4)])
    labels[:, :3] = 255
    entry = pickle.dumps((labels.tobytes(), labels.shape, 7))
    for patch in read_all(AuthorsLmdb(path=lmdb_tree(tmp_path, ids=(7,), label={0: entry}))).values():
        assert (patch.label[:3] == IGNORE).all()
        assert (patch.label[3:] != IGNORE).all()


# --- faults -----------------------------------------------------------------------------------------------------------


def entry(shape=(4, SIDE, SIDE), number=7, length=None, fill=0) -> bytes:
    """Any shape, any id."""
    return pickle.dumps((bytes([fill]) * (int(np.prod(shape)) if length is None else length), shape, number))


FAULTS = {
    "missing": ({"s1": {}}, "0k_251k_uint8_s1.lmdb: has no key 1"),
    "ids differ": ({"s2": {1: value("s2", 8)}}, "key 1 is 0000007 in the labels, 0000008 in s2"),
    "bands": ({"s2": {1: entry((4, 12, SIDE, SIDE))}}, r"s2 has shape \(4, 12, 24, 24\), expected \(seasons, 13,"),
    "seasons": ({"s1": {1: value("s1", 7, seasons=3)}}, "seasons and sizes differ"),
    "sizes": ({"s1": {1: entry((4, 2, SIDE, 23))}}, "seasons and sizes differ"),
    "short": ({"s1": {1: entry((4, 2, SIDE, SIDE), length=99)}}, "key 1 has 99 bytes, which shape"),
    "huge shape": ({"s1": {1: entry((4, 2, 2**31, 2**31), length=99)}}, "key 1 has 99 bytes, which shape"),
    "not three": ({"s1": {1: pickle.dumps((b"", (1,)))}}, r"holds no \(bytes, shape, id\)"),
    "truncated": ({"s1": {1: value("s1", 7)[:500]}}, "holds a truncated pickle"),
    "no pickle": ({"s1": {1: b"II*\0"}}, "holds a pickle with the instruction"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_entry_is_skipped_with_its_reason_and_the_others_are_kept(tmp_path, fault):
    changed, reason = FAULTS[fault]
    lmdb_tree(tmp_path, ids=(5, 7, 9), **changed)
    if fault == "missing":
        with lmdb.open(str(tmp_path / FILES["s1"])) as environment, environment.begin(write=True) as transaction:
            transaction.delete(b"1")
    found = read_all(AuthorsLmdb(path=tmp_path))
    assert [name for name, one in found.items() if isinstance(one, Skipped)] == ["0000007"]
    assert re.search(reason, found["0000007"].reason), found["0000007"].reason
    assert "\n" not in found["0000007"].reason
    assert len(found) == 9


@pytest.mark.parametrize(
    ("pickled", "name", "reason"),
    [
        (entry(number="../../etc"), "key-1", "has the id '../../etc', expected a number"),
        (entry(number=-1), "key-1", "has the id -1, expected a number"),
        (entry(number=5), "key-1", "id 0000005 stands under the keys 0 and 1"),
        (entry(fill=11), "0000007/0", r"label values \[11\] are outside the scheme"),
    ],
    ids=["text", "negative", "twice", "classes"],
)
def test_labels_that_cannot_be_used_are_skipped_with_their_reason(tmp_path, pickled, name, reason):
    found = read_all(AuthorsLmdb(path=lmdb_tree(tmp_path, ids=(5, 7), label={1: pickled})))
    assert re.search(reason, found[name].reason), found[name].reason
    assert all(isinstance(found[f"0000005/{season}"], Patch) for season in range(4))


def test_damaged_files_are_errors_that_name_the_file(tmp_path):
    source = AuthorsLmdb(path=lmdb_tree(tmp_path))
    file = tmp_path / FILES["label"] / "data.mdb"
    whole = file.read_bytes()
    for content, reason in (
        (whole[: len(whole) // 2], "dw_labels.lmdb: truncated"),
        (b"no" * 5000, "not a readable LMDB"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            source.locations()
    file.write_bytes(whole)
    assert len(source.locations()) == 3


def test_keys_that_are_no_numbers_are_refused(tmp_path):
    lmdb_tree(tmp_path, label={"../1": value("label", 1)})
    with pytest.raises(ValueError, match="has the key b'../1'"):
        AuthorsLmdb(path=tmp_path).locations()


def test_without_the_library_the_way_out_is_named(tmp_path, monkeypatch):
    lmdb_tree(tmp_path)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ValueError, match=re.escape("needs lmdb; pip install 'cromss[formats]'")):
        AuthorsLmdb(path=tmp_path).locations()


# --- hostile pickles --------------------------------------------------------------------------------------------------


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Built:
    """Has a state, for BUILD."""

    def __init__(self):
        self.state = 1


def persistent() -> bytes:
    out = io.BytesIO()
    pickler = pickle.Pickler(out)
    pickler.persistent_id = lambda _: "somewhere"
    pickler.dump(b"")
    return out.getvalue()


TOUCH = "touch {}"  # the file shows that something ran
HOSTILE = {
    "os.system": lambda file: pickle.dumps((b"", (1,), Runs(os.system, TOUCH.format(file)))),
    "os.system, protocol 0": lambda file: b"cos\nsystem\n(S'" + TOUCH.format(file).encode() + b"'\ntR.",
    "os.system, protocol 2": lambda file: pickle.dumps(Runs(os.system, TOUCH.format(file)), protocol=2),
    "eval, nested": lambda file: pickle.dumps(
        ((((Runs(eval, f"__import__('os').system('{TOUCH.format(file)}')"),),),), (1,), 1)
    ),
    "a name like numpy's": lambda file: pickle.dumps(np.int64(1)).replace(b"numpy._core.multiarray", b"numpy__core_multiarray"),
    "numpy array": lambda file: pickle.dumps((np.zeros(3, np.uint8), (3,), 1)),
    "global": lambda file: b"\x80\x04cos\nsystem\n.",
    "stack global": lambda file: b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "reduce": lambda file: b"\x80\x04\x8c\x02os)R.",
    "newobj": lambda file: b"\x80\x04\x8c\x02os)\x81.",
    "newobj with keywords": lambda file: b"\x80\x04\x8c\x02os)}\x92.",
    "inst": lambda file: b"(ios\nsystem\n.",
    "obj": lambda file: b"\x80\x04(cos\nsystem\no.",
    "build": lambda file: pickle.dumps(Built()),
    "extension registry": lambda file: b"\x80\x04\x82\x01.",
    "persistent id": lambda file: persistent(),
    "out-of-band buffer": lambda file: b"\x80\x05\x97.",
    "dictionary": lambda file: pickle.dumps({}),
    "list": lambda file: pickle.dumps([1]),
    "huge bytes": lambda file: b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "huge text": lambda file: b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "negative length": lambda file: b"\x80\x03T" + struct.pack("<i", -5) + b"x.",
    "huge frame": lambda file: b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"K\x01.",
    "memo never noted": lambda file: b"\x80\x04j\xff\xff\xff\x7f.",
    "doubling": lambda file: b"\x80\x04K\x01" + b"2\x86" * 400 + b".",
    "memo bomb": lambda file: b"\x80\x04K\x01" + b"".join(b"\x94h" + bytes([i % 250]) + b"\x86" for i in range(2000)) + b".",
    "endless marks": lambda file: b"\x80\x04" + b"(" * 100_000 + b".",
    "pop from nothing": lambda file: b"\x80\x04\x86.",
    "tuple over a mark": lambda file: b"\x80\x04(K\x01\x86.",
    "a mark for a value": lambda file: b"\x80\x04(.",
    "two values": lambda file: b"\x80\x04K\x01K\x01.",
    "no end": lambda file: b"\x80\x04K\x01",
    "a second program": lambda file: pickle.dumps(1) + pickle.dumps(Runs(os.system, TOUCH.format(file))),
    "protocol 2": lambda file: b"\x80\x02K\x01.",
    "protocol 9": lambda file: b"\x80\x09K\x01.",
    "empty": lambda file: b"",
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused_and_nothing_is_run(tmp_path, kind):
    touched = tmp_path / "touched"
    program = HOSTILE[kind](touched)
    with pytest.raises(UnsafePickle):
        read_plain_pickle(program)
    source = AuthorsLmdb(path=lmdb_tree(tmp_path / "tree", ids=(5, 7), s1={0: program}, label={1: program}))
    found = read_all(source)
    assert {name: type(one) for name, one in found.items()} == {"0000005": Skipped, "key-1": Skipped}
    assert not touched.exists()


def test_the_hostile_pickles_of_the_tests_do_run_when_they_are_loaded(tmp_path):
    """Otherwise the tests above would show nothing."""
    for number, kind in enumerate(kind for kind in HOSTILE if kind.startswith(("os.system", "eval"))):
        touched = tmp_path / str(number)
        try:
            pickle.loads(HOSTILE[kind](touched))  # noqa: S301
        finally:
            assert touched.exists()


def test_a_note_of_any_number_takes_the_memory_of_one():
    """The standard reader makes room for all numbers up to it: 16 GiB for a pickle of ten bytes."""
    assert read_plain_pickle(b"\x80\x04K\x05r\xff\xff\xff\xff.") == 5


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "plain",
    [
        (b"", (), 0),
        (b"ab" * 100_000, (4, 2, 264, 264), "0000007"),
        (1, -1, 255, 256, 65535, 65536, -(2**31), 2**40, -(2**62), "ü" * 300),
        ((), (1,), (1, 2), ((1, 2, 3), (1, 2, 3, 4))),
    ],
)
def test_plain_values_are_read_as_pickle_reads_them(plain, protocol):
    def as_written(found):
        if isinstance(found, memoryview):
            return bytes(found)
        return tuple(map(as_written, found)) if isinstance(found, tuple) else found

    assert as_written(read_plain_pickle(pickle.dumps(plain, protocol=protocol))) == plain


@pytest.mark.parametrize("number", [0, 7, -1, 2**62, -(2**62), 0x0A0A0A0A])
@pytest.mark.parametrize("numpy_1", [True, False])
def test_the_integers_of_numpy_are_read_without_numpy(number, numpy_1):
    pickled = pickle.dumps((np.int64(number), 1), protocol=4)
    if numpy_1:
        pickled = pickled.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
        length = len(pickled) - 11
        pickled = pickled[:3] + struct.pack("<Q", length) + pickled[11:]
    assert read_plain_pickle(pickled) == (number, 1)
