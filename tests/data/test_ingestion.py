"""A store does not depend on who wrote it, in how many pieces, or how often it was stopped."""

import errno
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trees import geotiff_tree, ssl4eo_tree

from cromss.data.ingestion import Ingest, ingest, plan_chunks
from cromss.data.live_index import index
from cromss.data.repair import repair
from cromss.data.sources.geotiff import GeoTiffTree
from cromss.data.sources.ssl4eo import Ssl4eo
from cromss.data.store import PatchStore
from cromss.data.synthetic import SyntheticEarth
from cromss.files import Folder
from cromss.ingest import main

EARTH = SyntheticEarth(places=70, size=32, seasons=2)
CONFIG = Ingest(chunk=16)


def files(store: Path) -> dict[str, bytes]:
    """Every file of a store, hidden ones too."""
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The store, written in one go by this process."""
    path = tmp_path_factory.mktemp("ingestion") / "store"
    ingest(EARTH, path, CONFIG)
    return path


def test_ray_tasks_write_the_same_bytes_as_one_process(ray_session, written, tmp_path):
    lines = []
    summary = ingest(EARTH, tmp_path / "store", CONFIG, lines.append, workers=lambda chunks: 2)
    assert files(tmp_path / "store") == files(written)
    assert summary.patches == 140
    assert lines[-1].startswith("70/70 locations, 140 patches, 0 skipped")


def test_a_chunk_is_a_shard_of_its_own_locations(written):
    store = PatchStore.open(written)
    chunks = plan_chunks(EARTH, CONFIG)
    assert [len(chunk.places) for chunk in chunks] == [16, 16, 16, 16, 6]
    for number, (chunk, shard) in enumerate(zip(chunks, store.manifest.shards, strict=True)):
        table = store.read(number, 0, ["location_id"])
        assert set(table["location_id"].to_pylist()) <= {location.id for location, _ in chunk.places}
        assert shard.rows == 2 * len(chunk.places)


def test_a_stopped_ingest_goes_on_and_ends_with_the_same_bytes(written, tmp_path, monkeypatch):
    reads = []
    original = SyntheticEarth.read

    def counted(self, location):
        reads.append(location.id)
        if len(reads) == 40 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        return original(self, location)

    monkeypatch.setattr(SyntheticEarth, "read", counted)
    with pytest.raises(KeyboardInterrupt):
        ingest(EARTH, tmp_path / "store", CONFIG)
    with pytest.raises(ValueError, match="is not a patch store"):
        PatchStore.open(tmp_path / "store")
    done = sorted(path.name for path in (tmp_path / "store" / ".ingest").glob("0*.json"))
    assert done == ["00000.json", "00001.json"]
    reads.clear()
    lines = []
    ingest(EARTH, tmp_path / "store", CONFIG, lines.append)
    assert lines[0] == "going on: 2 of 5 chunks are there"
    first_two = {location.id for chunk in plan_chunks(EARTH, CONFIG)[:2] for location, _ in chunk.places}
    assert set(reads[1:]).isdisjoint(first_two)  # the first read looks up the patch size
    assert files(tmp_path / "store") == files(written)


def test_an_ingest_killed_with_signal_9_goes_on(written, tmp_path):
    store = tmp_path / "store"
    command = [sys.executable, "-m", "cromss.ingest", "synthetic", str(store), "--places", "70", "--size", "32",
               "--seasons", "2", "--chunk", "16", "--workers", "0"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (store / ".ingest" / "00001.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (store / "manifest.json").exists()
    assert main(command[3:]) == 0
    assert files(store) == files(written)


def test_an_unfinished_ingest_of_another_configuration_is_refused_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("cromss.data.ingestion.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ingest(EARTH, tmp_path / "store", CONFIG)
    before = files(tmp_path / "store")
    with pytest.raises(ValueError, match=r"unfinished ingest of another configuration \(ingest\.seed 0 -> 1\)"):
        ingest(EARTH, tmp_path / "store", Ingest(chunk=16, seed=1))
    assert files(tmp_path / "store") == before


def test_a_shard_that_vanished_from_an_unfinished_ingest_is_written_again(written, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("cromss.data.ingestion.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ingest(EARTH, tmp_path / "store", CONFIG)
    (tmp_path / "store" / "shard-00003.parquet").unlink()
    ingest(EARTH, tmp_path / "store", CONFIG)
    assert files(tmp_path / "store") == files(written)


def test_a_chunk_without_a_usable_patch_leaves_no_shard_and_no_gap(tmp_path):
    root = geotiff_tree(tmp_path / "tree", locations=40, seasons=1, size=(16, 16))
    order = [location.id for chunk in plan_chunks(GeoTiffTree(path=root), CONFIG) for location, _ in chunk.places]
    for place in order[16:32]:
        (root / place / "2020-00" / "label.tif").unlink()
    summary = ingest(GeoTiffTree(path=root), tmp_path / "store", CONFIG)
    assert [shard.path for shard in summary.manifest.shards] == ["shard-00000.parquet", "shard-00002.parquet"]
    assert len(PatchStore.open(tmp_path / "store").blocks) > 0
    assert len(summary.skipped) == 16


# --- where the source lies ----------------------------------------------------------------------------------------------


def test_the_manifest_names_the_source_absolutely_so_that_it_can_be_repaired_from_elsewhere(tmp_path, monkeypatch):
    geotiff_tree(tmp_path / "tree", locations=4, seasons=1, size=(16, 16))
    monkeypatch.chdir(tmp_path)
    ingest(GeoTiffTree(path="tree"), "store", CONFIG)
    before = files(tmp_path / "store")
    assert PatchStore.open("store").manifest.source["layout"]["path"] == str(tmp_path / "tree")
    (tmp_path / "store" / "shard-00000.parquet").unlink()
    monkeypatch.chdir("/")
    assert repair(PatchStore.open(tmp_path / "store", check=False)) == ["shard-00000.parquet"]
    assert files(tmp_path / "store") == before


def test_every_path_of_a_source_is_kept_absolute(tmp_path, monkeypatch):
    ssl4eo_tree(tmp_path / "tree", ids=1, seasons=1)
    (tmp_path / "tree" / "dw_noisy_labels").rename(tmp_path / "labels")
    (tmp_path / "ids.csv").write_text("0000000,20200120T100000_T32UPU\n")
    monkeypatch.chdir(tmp_path)
    summary = ingest(Ssl4eo(path="tree", labels="labels", ids="ids.csv"), "store")
    kept = summary.manifest.source["layout"]
    assert [kept[name] for name in ("path", "labels", "ids")] == [
        str(tmp_path / name) for name in ("tree", "labels", "ids.csv")
    ]


@pytest.mark.parametrize("what", ["path", "labels"])
@pytest.mark.parametrize("mount", [False, True])
def test_a_node_that_does_not_see_the_source_says_so_and_skips_nothing(tmp_path, what, mount):
    ssl4eo_tree(tmp_path / "tree", ids=2, seasons=1)
    shutil.move(tmp_path / "tree" / "dw_noisy_labels", tmp_path / "labels")
    source, away = Ssl4eo(path=tmp_path / "tree", labels=tmp_path / "labels"), tmp_path / "away"

    def unmounted(chunks: int) -> int:
        getattr(source, what).rename(away)
        if mount:
            getattr(source, what).mkdir()
        return 0

    with pytest.raises(
        ValueError, match=f"not seen by node {socket.gethostname()}; name a folder that all nodes share"
    ):
        ingest(source, tmp_path / "store", workers=unmounted)
    away.replace(getattr(source, what))
    assert ingest(source, tmp_path / "store").skipped == []


def test_a_mount_that_is_lost_in_the_middle_of_a_chunk_skips_nothing(tmp_path, monkeypatch):
    root = geotiff_tree(tmp_path / "tree", locations=20, seasons=1, size=(16, 16))
    ingest(GeoTiffTree(path=root), tmp_path / "whole", CONFIG)
    loads, original = [], GeoTiffTree.load

    def load(self, location, handle):
        loads.append(location.id)
        if len(loads) == 10:
            root.rename(tmp_path / "away")
        return original(self, location, handle)

    with monkeypatch.context() as patched:
        patched.setattr(GeoTiffTree, "load", load)
        with pytest.raises(ValueError, match="not seen by node"):
            ingest(GeoTiffTree(path=root), tmp_path / "store", CONFIG)
    (tmp_path / "away").rename(root)
    ingest(GeoTiffTree(path=root), tmp_path / "store", CONFIG)
    assert files(tmp_path / "store") == files(tmp_path / "whole")


def test_an_ingest_whose_source_became_unusable_keeps_what_it_has(written, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("cromss.data.ingestion.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ingest(EARTH, tmp_path / "store", CONFIG)
    before = files(tmp_path / "store")
    with monkeypatch.context() as patched:
        patched.setattr(SyntheticEarth, "read", lambda self, place: (_ for _ in ()).throw(OSError("the disk is gone")))
        with pytest.raises(ValueError, match=r"holds 5 chunks of this ingest, but nothing .*: the disk is gone\)"):
            ingest(EARTH, tmp_path / "store", CONFIG)
    assert files(tmp_path / "store") == before
    ingest(EARTH, tmp_path / "store", CONFIG)
    assert files(tmp_path / "store") == files(written)


# --- one at a time ------------------------------------------------------------------------------------------------------


def in_the_middle(monkeypatch, act) -> list:
    """`act` is called at the 30th read of the synthetic Earth; what it returned."""
    reads, found, original = [], [], SyntheticEarth.read

    def read(self, location):
        reads.append(location.id)
        if len(reads) == 30:
            found.append(act())
        return original(self, location)

    monkeypatch.setattr(SyntheticEarth, "read", read)
    return found


def test_a_second_ingest_into_the_same_folder_is_refused_and_harms_nothing(written, tmp_path, monkeypatch):
    store = tmp_path / "store"

    def second() -> bool:
        for seed in (0, 1):
            with pytest.raises(ValueError, match="store: another process is writing it"):
                ingest(EARTH, store, Ingest(chunk=16, seed=seed))
        return bool(list(store.glob(".writing-*")))

    found = in_the_middle(monkeypatch, second)
    ingest(EARTH, store, CONFIG)
    assert found == [True]
    assert files(store) == files(written)


def test_whoever_comes_when_another_has_just_finished_is_refused(tmp_path, monkeypatch):
    def flock(file, how):
        shutil.rmtree(tmp_path / "store" / ".ingest")

    monkeypatch.setattr("cromss.data.underway.fcntl.flock", flock)
    with pytest.raises(ValueError, match="another process is writing it"):
        ingest(EARTH, tmp_path / "store", CONFIG)


def test_what_a_killed_task_was_writing_is_gone_when_the_store_is_finished(written, tmp_path, monkeypatch):
    store = tmp_path / "store"

    def killed() -> None:
        (store / ".writing-killed").mkdir()
        (store / ".writing-killed" / "shard").write_bytes(bytes(100))

    in_the_middle(monkeypatch, killed)
    ingest(EARTH, store, CONFIG)
    assert files(store) == files(written)
    assert not list(store.glob(".*"))


def test_a_file_system_without_locks_takes_a_store_and_nothing_of_others_is_swept(written, tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("cromss.data.underway.fcntl.flock", flock)
    in_the_middle(monkeypatch, lambda: (tmp_path / "store" / ".writing-other").mkdir())
    ingest(EARTH, tmp_path / "store", CONFIG)
    assert files(tmp_path / "store") == files(written)
    assert (tmp_path / "store" / ".writing-other").exists()


def test_an_ingest_killed_before_its_first_word_begins_again(written, tmp_path):
    (tmp_path / "store" / ".ingest").mkdir(parents=True)
    (tmp_path / "store" / ".ingest" / "lock").touch()
    ingest(EARTH, tmp_path / "store", CONFIG)
    assert files(tmp_path / "store") == files(written)


# --- what does not fit, what fails --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["product", "bands"])
def test_an_acquisition_of_another_product_or_bands_is_skipped_with_both_sides(tmp_path, monkeypatch, what):
    order = [location.id for chunk in plan_chunks(EARTH, CONFIG) for location, _ in chunk.places]
    original, odd = SyntheticEarth.read, (order[20], order[40])

    def read(self, location):
        for patch in original(self, location):
            contract = patch.contracts["s2"]
            if location.id in odd and patch.acquisition.endswith("1"):
                other = {"product": "Sentinel-2 L2A"} if what == "product" else {"bands": contract.bands[::-1]}
                contract = contract.model_copy(update=other)
            yield replace(patch, contracts=patch.contracts | {"s2": contract})

    monkeypatch.setattr(SyntheticEarth, "read", read)
    summary = ingest(EARTH, tmp_path / "store", CONFIG)
    ((reason, names),) = summary.reasons().items()
    assert [name.rsplit("/", 1)[0] for name in names] == list(odd)
    both = {
        "product": "s2 product differ: the store has Sentinel-2 L1C, this one has Sentinel-2 L2A",
        "bands": "s2 bands (in order) differ: the store has B1, B2, B3, B4, B5, B6, B7, B8, B8A, B9, B10, B11, B12, this "
        "one has B12, B11, B10, B9, B8A, B8, B7, B6, B5, B4, B3, B2, B1",
    }[what]
    assert reason.startswith(both)
    assert summary.patches == 138


def test_a_bucket_that_stops_answering_is_one_line_and_the_same_command_goes_on(written, tmp_path, monkeypatch):
    def silent(self, *_):
        raise OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Couldn't connect")

    size, names, asked = Folder.size, Folder.names, []
    with monkeypatch.context() as patched:
        patched.setattr(Folder, "size", lambda self, name: (silent if name.startswith("shard") else size)(self, name))
        with pytest.raises(ValueError, match=r"store: cannot be read \(no answer.*repeat the command to go on"):
            ingest(EARTH, tmp_path / "store", CONFIG)  # when all shards are there
        with pytest.raises(ValueError, match=r"store: cannot be read \(no answer.*try again"):
            ingest(EARTH, tmp_path / "store", CONFIG)  # when it looks which are
    for limit in range(4):
        asked.clear()
        with monkeypatch.context() as patched:
            patched.setattr(
                Folder,
                "names",
                lambda self, limit=limit: asked.append(0) or (silent if len(asked) > limit else names)(self),
            )
            patched.setattr("cromss.data.ingestion._written", lambda *_: (_ for _ in ()).throw(ValueError("looked")))
            with pytest.raises(ValueError, match=r"cannot be read \(no answer|looked"):
                ingest(EARTH, tmp_path / "store", CONFIG)
    ingest(EARTH, tmp_path / "store", CONFIG)
    assert files(tmp_path / "store") == files(written)


@pytest.mark.parametrize("fits", ["not even a block", "all but the end of the footer"])
def test_a_full_disk_is_one_line(written, tmp_path, fits):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = 40_000 if fits == "not even a block" else (written / "shard-00000.parquet").stat().st_size - 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(ValueError, match=r"shard: cannot be written \(File too large\); free some space"):
            ingest(EARTH, tmp_path / "store", CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_store_that_this_node_cannot_reach_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match=f"cannot be written on {socket.gethostname()} .*a folder that all nodes share"
    ):
        ingest(EARTH, tmp_path / "store", CONFIG, workers=lambda chunks: shutil.rmtree(tmp_path / "store") or 0)


def test_a_location_whose_name_is_no_text_is_refused_with_the_way_out(tmp_path, capsys):
    root = geotiff_tree(tmp_path / "tree", locations=3, seasons=1, size=(16, 16))
    os.rename(root / "place1", os.fsencode(root) + b"/pl\xff")
    for live in ([], ["--live"]):
        assert main(["geotiff", str(root), str(tmp_path / "store"), *live]) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1
        assert "'pl\\udcff': is not UTF-8" in said
        assert "--exclude 'pl?'" in said
    assert not (tmp_path / "store").exists()
    assert main(["geotiff", str(root), str(tmp_path / "store"), "--exclude", "pl?"]) == 0


def test_an_acquisition_whose_name_is_no_text_is_skipped_and_named(tmp_path, monkeypatch):
    original = SyntheticEarth.read

    def read(self, location):
        for patch in original(self, location):
            odd = location.id == EARTH.locations()[3].id and patch.acquisition.endswith("1")
            name = "\udcff" if odd else patch.acquisition
            yield replace(patch, acquisition=name, patch_id=f"{location.id}/{name}")

    monkeypatch.setattr(SyntheticEarth, "read", read)
    summary = ingest(EARTH, tmp_path / "store", CONFIG)
    (one,) = summary.skipped
    assert one.name == f"{EARTH.locations()[3].id}/\\udcff"
    assert "is not UTF-8" in one.reason
    assert summary.patches == 139
    str(summary).encode()
    with pytest.raises(ValueError, match="is not UTF-8"):
        index(EARTH, tmp_path / "live")


# --- folds by cell ------------------------------------------------------------------------------------------------------


def test_folds_of_cells_keep_neighbours_together(tmp_path):
    ingest(EARTH, tmp_path / "store", Ingest(chunk=16, folds=4, cell=30))
    store = PatchStore.open(tmp_path / "store")
    folds: dict[tuple[int, int], set[int]] = {}
    rows = 0
    for block in range(len(store.blocks)):
        found = store.read(int(store.blocks.shard[block]), int(store.blocks.first[block]), ["lon", "lat", "fold"])
        for row in found.to_pylist():
            folds.setdefault((int(row["lon"] // 30), int(row["lat"] // 30)), set()).add(row["fold"])
            rows += 1
    assert all(len(of_cell) == 1 for of_cell in folds.values())
    assert {fold for of_cell in folds.values() for fold in of_cell} == {0, 1, 2, 3}
    assert rows == 70


def test_folds_of_cells_need_to_know_where_a_location_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(SyntheticEarth, "_position", lambda self, place: (float("nan"), float("nan")))
    with pytest.raises(ValueError, match="does not say where it lies; leave --cell out"):
        ingest(EARTH, tmp_path / "store", Ingest(cell=30))


# --- verify and repair --------------------------------------------------------------------------------------------------


def test_damage_of_three_kinds_is_listed_and_repaired_byte_for_byte(written, tmp_path, capsys):
    store = tmp_path / "store"
    ingest(EARTH, store, CONFIG)
    flipped, truncated, missing = (store / f"shard-0000{number}.parquet" for number in (0, 2, 4))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    truncated.write_bytes(truncated.read_bytes()[:-1])
    missing.unlink()
    assert main(["--verify", str(store)]) == 1
    said = capsys.readouterr().out
    for name, reason in (("00000", "differs"), ("00002", "bytes instead of"), ("00004", "is missing")):
        assert any(name in line and reason in line for line in said.splitlines())
    assert "3 of 5 shards do not hold: 76 of 140 patches" in said
    assert main(["--repair", str(store)]) == 0
    assert files(store) == files(written)
    assert main(["--verify", str(store)]) == 0
    assert main(["--repair", str(store)]) == 0
    assert "nothing to repair" in capsys.readouterr().out


def test_a_source_that_changed_repairs_nothing(tmp_path):
    root = geotiff_tree(tmp_path / "tree", locations=20, seasons=1, size=(16, 16))
    ingest(GeoTiffTree(path=root), tmp_path / "store", CONFIG)
    shard = tmp_path / "store" / "shard-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    geotiff_tree(root, locations=20, seasons=1, size=(24, 24))
    with pytest.raises(ValueError, match="another content than it did; ingest into a new store"):
        repair(PatchStore.open(tmp_path / "store", check=False))
    assert shard.stat().st_size == PatchStore.open(tmp_path / "store", check=False).manifest.shards[0].bytes - 1


# --- statistics ---------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_pixels(written):
    store = PatchStore.open(written)
    patches = [patch for location in EARTH.locations() for patch in EARTH.read(location)]
    for modality in ("s1", "s2"):
        pixels = np.stack([patch.images[modality] for patch in patches]).astype(np.float64)
        for band, found in enumerate(store.manifest.statistics["train"][modality]):
            values = pixels[:, band]
            assert found.band == store.bands[modality][band]
            assert found.pixels == values.size == sum(found.histogram)
            np.testing.assert_allclose([found.mean, found.std], [values.mean(), values.std()], rtol=1e-6)
            np.testing.assert_allclose([found.minimum, found.maximum], [values.min(), values.max()], rtol=1e-6)
            np.testing.assert_allclose(found.patch_std, values.mean(axis=(1, 2)).std(), rtol=1e-6)
    assert store.contract("s2").mean == tuple(band.mean for band in store.manifest.statistics["train"]["s2"])


def test_seasons_add_up_to_the_histogram_and_follow_the_acquisitions(written):
    manifest = PatchStore.open(written).manifest
    seasons = manifest.seasons["train"]
    assert len(seasons) == 2
    assert {name: sum(season[name] for season in seasons) for name in seasons[0]} == manifest.histogram["train"]
    for k, season in enumerate(seasons):
        labels = [list(EARTH.read(location))[k].label for location in EARTH.locations()]
        assert season["water"] == sum(int((label == 0).sum()) for label in labels)


# --- what is there already ----------------------------------------------------------------------------------------------


def test_a_finished_ingest_repeated_leaves_the_store_and_tells_the_same(tmp_path, capsys, monkeypatch):
    root = geotiff_tree(tmp_path / "tree", locations=3, seasons=1)
    (root / "place1" / "2020-00" / "s1.tif").unlink()
    command = ["geotiff", str(root), str(tmp_path / "store"), "--tile", "16"]
    assert main(command) == 0
    first, before = capsys.readouterr().out, files(tmp_path / "store")
    monkeypatch.setattr(GeoTiffTree, "read", lambda *_: pytest.fail("read again"))
    assert main(command) == 0
    assert capsys.readouterr().out == first
    assert files(tmp_path / "store") == before
    assert main([*command, "--seed", "1"]) == 2
    assert "already holds a store" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["tree/place0/store", "store/inside"])
def test_a_store_inside_its_source_or_another_store_is_refused(tmp_path, capsys, where):
    root = geotiff_tree(tmp_path / "tree", locations=2, seasons=1)
    assert main(["geotiff", str(root), str(tmp_path / "store")]) == 0
    assert main(["geotiff", str(root), str(tmp_path / where)]) == 2
    assert "lies inside the" in capsys.readouterr().err
    assert not (tmp_path / where).exists()
