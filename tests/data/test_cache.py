"""The cache of row groups: bounded, shared, and never the reason why a run ends."""

import logging
import multiprocessing
import os
import threading

import numpy as np
import pyarrow as pa
import pytest

from cromss.data import cache as module
from cromss.data.cache import Cache, CacheConfig, gigabytes_of
from cromss.data.manifest import checksum, checksum_column
from cromss.data.store import Lost, PatchStore
from cromss.files import Folder

DIGEST = "0123456789abcdef" * 4
CELL = 10_000


def rows(number: int, cell: int = CELL) -> pa.Table:
    """A row group: two rows with a checked cell, one of them null."""
    ids = [f"p{number}/0", f"p{number}/1"]
    cells = [np.random.default_rng(number).bytes(cell), None]
    sums = [checksum(cells[0], ids[0]), None]
    return pa.table({"patch_id": ids, "s1": pa.array(cells, pa.large_binary()),
                     checksum_column("s1"): pa.array(sums, pa.uint32())})  # fmt: skip


def open_cache(folder, row_groups: float = 100.0, digest: str = DIGEST) -> Cache:
    """A cache that holds so many row groups of `rows`."""
    return Cache(CacheConfig(folder=str(folder), gigabytes=row_groups * one(folder) / 1e9), digest)


def one(folder) -> int:
    """Bytes of one file."""
    measured = Cache(CacheConfig(folder=str(folder.with_name("measured"))), DIGEST)
    measured.table(0, 0, ["s1"], lambda: rows(0))
    return next(measured.folder.iterdir()).stat().st_size


def read(cache: Cache, number: int) -> tuple[pa.Table, bool]:
    """(row group `number`, whether it had to be fetched)."""
    fetched = []
    table = cache.table(number, 0, ["s1"], lambda: fetched.append(1) or rows(number))
    return table, bool(fetched)


def taken(folder) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.name != module.BYTES)


def test_what_was_fetched_once_comes_from_the_disk_also_after_a_restart(tmp_path):
    assert read(open_cache(tmp_path / "c"), 1) == (rows(1), True)
    assert read(open_cache(tmp_path / "c"), 1) == (rows(1), False)
    assert read(open_cache(tmp_path / "c", digest="f" * 64), 1) == (rows(1), True), "of another store"


def test_other_columns_of_a_row_group_are_another_file(tmp_path):
    cache = open_cache(tmp_path / "c")
    read(cache, 1)
    labels = rows(1).rename_columns({"s1": "label", checksum_column("s1"): checksum_column("label")})
    assert cache.table(1, 0, ["label"], lambda: labels) == labels
    assert cache.table(1, 0, ["label"], lambda: None) == labels
    assert read(cache, 1) == (rows(1), False)


def test_what_cannot_be_checked_is_not_kept(tmp_path):
    cache = open_cache(tmp_path / "c")
    for columns in (["patch_id"], ["s1"], ["s1", checksum_column("s1")], ["patch_id", "s1"]):
        some = rows(1).select(columns)
        for _ in range(2):
            assert cache.table(1, 0, columns, lambda some=some: some) == some
    assert taken(tmp_path / "c") == 0


def test_the_limit_holds_at_every_moment_and_the_least_recently_used_goes_first(tmp_path):
    cache, limit = open_cache(tmp_path / "c", 3), 3 * one(tmp_path / "c")
    for number in (1, 2, 3):
        read(cache, number)
    os.utime(next(cache.folder.glob("000001-*")), ns=(2, 2))
    os.utime(next(cache.folder.glob("000002-*")), ns=(1, 1))
    os.utime(next(cache.folder.glob("000003-*")), ns=(3, 3))
    assert read(cache, 2)[1] is False  # the oldest by writing, now the newest by use
    assert read(cache, 4)[1] is True
    assert taken(tmp_path / "c") <= limit
    assert [read(cache, number)[1] for number in (2, 3, 4)] == [False] * 3
    assert read(cache, 1)[1] is True


def test_the_limit_is_one_of_all_stores_of_the_folder(tmp_path):
    first, second = open_cache(tmp_path / "c", 2), open_cache(tmp_path / "c", 2, "f" * 64)
    for number in range(4):
        read(first, number)
        read(second, number)
        assert taken(tmp_path / "c") <= first.room.limit
    assert not list(first.folder.iterdir()) or not read(second, 3)[1]


def test_a_row_group_larger_than_the_limit_is_read_and_not_kept(tmp_path):
    cache = open_cache(tmp_path / "c", 0.5)
    assert [read(cache, 1) for _ in range(2)] == [(rows(1), True)] * 2
    assert taken(tmp_path / "c") == 0


def test_a_folder_that_is_too_full_from_before_is_emptied_to_its_new_limit(tmp_path):
    before = open_cache(tmp_path / "c", 10)
    for number in range(10):
        read(before, number)
    after = open_cache(tmp_path / "c", 4)
    assert 0 < taken(tmp_path / "c") <= after.room.limit
    assert read(after, 9)[1] is False


def test_nothing_but_its_own_files_is_ever_removed(tmp_path):
    folder = tmp_path / "c"
    ours = open_cache(folder, 1)
    theirs = [
        folder / "notes.txt",
        folder / "photos" / "a.jpg",
        folder / "photos" / "000001-0000-0123abcd",
        ours.folder / "readme",
        folder / ("a" * 16) / "x.bin",
    ]
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 50_000)
        os.utime(path, ns=(1, 1))
    for number in range(5):
        read(ours, number)
    assert all(path.exists() for path in theirs)


def test_the_folder_is_not_listed_for_every_fetch(tmp_path, monkeypatch):
    cache = open_cache(tmp_path / "c", 100)
    listed = []
    monkeypatch.setattr(cache.room, "_files", lambda files=cache.room._files: listed.append(1) or files())
    for number in range(300):
        read(cache, number)
    assert len(listed) <= 200 / 5 + 1, "once full, a listing frees a twentieth: room for five of these"
    assert taken(tmp_path / "c") <= cache.room.limit


def test_a_count_that_was_lost_is_made_anew(tmp_path):
    cache = open_cache(tmp_path / "c", 3)
    for number in range(3):
        read(cache, number)
    (tmp_path / "c" / module.BYTES).write_bytes(b"torn")
    read(cache, 3)
    assert taken(tmp_path / "c") <= cache.room.limit


@pytest.mark.parametrize("where", [0.0, 0.02, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_file_is_fetched_again(tmp_path, damage, where):
    cache = open_cache(tmp_path / "c", 2)
    read(cache, 1)
    [file] = cache.folder.iterdir()
    content = bytearray(file.read_bytes())
    position = int(where * len(content))
    match damage:
        case "flip":
            content[position] ^= 0x40
        case "truncate":
            del content[position:]
        case "empty":
            content.clear()
    file.write_bytes(content)
    assert read(cache, 1) == (rows(1), True)
    assert read(cache, 1) == (rows(1), False)
    assert taken(tmp_path / "c") <= cache.room.limit


def test_rows_that_came_damaged_from_the_bucket_are_not_kept(tmp_path):
    cache, good = open_cache(tmp_path / "c"), rows(1)
    for column, values in (("s1", [b"other bytes", None]), ("patch_id", ["p1/9", "p1/1"]), ("s1", [None, None])):
        index = good.column_names.index(column)
        bad = good.set_column(index, column, pa.array(values, good.schema.field(column).type))
        assert cache.table(1, 0, ["s1"], lambda bad=bad: bad) == bad, (
            "whoever takes a cell out compares and names the shard"
        )
    assert read(cache, 1) == (good, True)


def test_a_full_disk_is_said_once_and_ends_nothing(tmp_path, monkeypatch, caplog):
    cache = open_cache(tmp_path / "c")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.Room, "reserve", full)
    with caplog.at_level(logging.WARNING):
        assert [read(cache, number) for number in (1, 2)] == [(rows(1), True), (rows(2), True)]
    assert [record.getMessage() for record in caplog.records] == [
        f"cache {cache.folder}: No space left on device; what it does not hold is read from the bucket"
    ]


def test_a_write_that_fails_half_way_leaves_nothing_and_takes_no_room(tmp_path, monkeypatch):
    cache = open_cache(tmp_path / "c", 2)
    with monkeypatch.context() as broken:
        broken.setattr(module.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        for number in range(5):
            read(cache, number)
    assert taken(tmp_path / "c") == 0
    assert [read(cache, number)[1] for number in (1, 2, 1, 2)] == [True, True, False, False]


def test_a_folder_that_vanished_is_made_again(tmp_path):
    import shutil

    cache = open_cache(tmp_path / "c")
    read(cache, 1)
    shutil.rmtree(cache.folder)
    assert [read(cache, 1)[1] for _ in range(2)] == [True, False]
    shutil.rmtree(tmp_path / "c")
    assert read(cache, 1) == (rows(1), True)


def test_what_a_killed_process_left_unfinished_is_removed_in_time(tmp_path):
    cache = open_cache(tmp_path / "c", 2)
    read(cache, 1)
    [file] = cache.folder.iterdir()
    left = file.with_name(f"{file.name}.1-2{module.PART}")
    left.write_bytes(b"x" * one(tmp_path / "c"))
    open_cache(tmp_path / "c", 2)
    assert left.exists(), "it may be another process's, in the middle of its write"
    os.utime(left, (1, 1))
    open_cache(tmp_path / "c", 2)
    assert not left.exists()
    assert file.exists()


def _reader(folder, limit, seed, wrong):
    cache = Cache(CacheConfig(folder=str(folder), gigabytes=limit / 1e9), DIGEST)
    for number in np.random.default_rng(seed).integers(0, 12, 120):
        table, _ = read(cache, int(number))
        with cache.room._taken():  # while nobody renames
            if table != rows(int(number)) or taken(folder) > limit:
                wrong.set()


def test_processes_and_threads_share_a_folder_within_the_limit(tmp_path):
    folder, limit = tmp_path / "c", 5 * one(tmp_path / "c")
    spawn = multiprocessing.get_context("spawn")
    wrong = spawn.Event()
    others = [spawn.Process(target=_reader, args=(folder, limit, seed, wrong)) for seed in range(2)]
    others += [threading.Thread(target=_reader, args=(folder, limit, seed, wrong)) for seed in (7, 8)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert not wrong.is_set()
    assert not list(folder.rglob(f"*{module.PART}"))
    assert int((folder / module.BYTES).read_bytes()) == taken(folder)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--cache .*file/c: cannot be written .*choose another folder"):
        Cache(CacheConfig(folder=str(tmp_path / "file" / "c")), DIGEST)
    with pytest.raises(ValueError, match="s3://bucket/c: must be a folder on the machine's own disk, not a bucket"):
        CacheConfig(folder="s3://bucket/c")


def test_sizes_are_written_as_people_write_them():
    given = {"200GB": 200, "1.5TB": 1500, "800MB": 0.8, "200": 200, "200 gb": 200, "2t": 2000}
    assert {text: gigabytes_of(text) for text in given} == given


@pytest.mark.parametrize("text", ["", "many", "-3GB", "0GB", "12 apples", "1e3", "5KB", "GB", "nan"])
def test_a_nonsense_size_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"--cache-size .*: is no size; write it like 200GB, 1.5TB or 800MB"):
        gigabytes_of(text)


def test_a_local_store_needs_no_cache(tiny_store, tmp_path):
    store = PatchStore.open(tiny_store.folder, cache=CacheConfig(folder=str(tmp_path / "c")))
    store.sample(3)
    assert not (tmp_path / "c").exists()


def test_a_store_without_some_of_its_shards_uses_the_same_cache(tiny_store, tmp_path):
    config = CacheConfig(folder=str(tmp_path / "c"))
    folders = set()
    for without in ((), (Lost(tiny_store.manifest.shards[0].path, "is missing", 1),)):
        store = PatchStore(_Elsewhere(str(tiny_store.path)), tiny_store.manifest, without=without, cache=config)
        folders.add(store._cached.folder)
    assert len(folders) == 1


class _Elsewhere(Folder):
    local = None
