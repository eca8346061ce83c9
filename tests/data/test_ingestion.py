"""A store does not depend on who wrote it, in how many pieces, or how often it was stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from trees import geotiff_tree

from cromss.data.ingestion import Ingest, ingest, plan_chunks
from cromss.data.repair import repair
from cromss.data.sources.geotiff import GeoTiffTree
from cromss.data.store import PatchStore
from cromss.data.synthetic import SyntheticEarth
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
