"""Training before converting is training after: a live store gives, byte for byte, the rows of the store that ingest writes."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from batches import assert_same
from tiny import TINY
from trees import acquisition, classes, dfc2020_tree, geotiff_tree, optical, radar, ssl4eo_tree, write_tif

from cromss.config import resolve
from cromss.data import live_index
from cromss.data.ingestion import Ingest, ingest, plan_chunks
from cromss.data.live import LiveStore
from cromss.data.live_index import index, packed, unpacked
from cromss.data.plan import Plan
from cromss.data.sources.base import Location
from cromss.data.sources.dfc2020 import Dfc2020
from cromss.data.sources.geotiff import GeoTiffTree
from cromss.data.sources.ssl4eo import Ssl4eo
from cromss.data.store import PatchStore
from cromss.data.stream import DirectReader, RayReader, open_batches, open_rows
from cromss.data.synthetic import SyntheticEarth
from cromss.ingest import main
from cromss.landcover import IGNORE
from cromss.training import pretraining


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """17 locations of 2 acquisitions, 2 more of 1 and 3."""
    root = geotiff_tree(tmp_path_factory.mktemp("tree"), locations=17)
    acquisition(root / "single" / "2020-00", seed=1)
    for season in range(3):
        acquisition(root / "triple" / f"2020-{season:02d}", seed=50 + season)
    return root


def both(source, where: Path, config: Ingest | None = None) -> tuple[PatchStore, PatchStore]:
    """(converted, live) store of a source."""
    assert ingest(source, where / "converted", config).skipped == []
    assert index(source, where / "live", config).skipped == []
    return PatchStore.open(where / "converted"), PatchStore.open(where / "live")


def row_groups(store: PatchStore, columns=None):
    """Every row group in the order of the blocks."""
    for block in range(len(store.blocks)):
        for slot in range(int(store.blocks.n[block])):
            shard, first = int(store.blocks.shard[block]), int(store.blocks.first[block])
            yield store.read(shard, first + slot, columns or store.layout.schema.names)


# --- the same rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("geotiff", {}),
        ("geotiff", {"tile": 8, "folds": 3, "chunk": 16}),
        ("geotiff", {"tile": 12, "split": "halves", "guard": 4, "encoding": "raw", "bands": "3"}),
        ("geotiff", {"split": "halves-swapped", "axis": "north-south", "guard": 8, "seed": 3, "exclude": ("place1*",)}),
        ("geotiff", {"cell": 10.0}),
        ("ssl4eo", {}),
        ("ssl4eo-coded", {}),
        ("dfc2020", {"folds": 2}),
        ("synthetic", {"bands": "9"}),
    ],
)
def test_every_row_group_is_that_of_the_converted_store(tree, tmp_path, layout, options):
    source = {
        "geotiff": lambda: GeoTiffTree(path=tree),
        "ssl4eo": lambda: Ssl4eo(path=ssl4eo_tree(tmp_path / "ssl4eo")),
        "ssl4eo-coded": lambda: Ssl4eo(path=ssl4eo_tree(tmp_path / "coded", ids=1, coded=True)),
        "dfc2020": lambda: Dfc2020(path=dfc2020_tree(tmp_path / "dfc2020")),
        "synthetic": lambda: SyntheticEarth(places=4, size=32),
    }[layout]()
    converted, live = both(source, tmp_path, Ingest(**options))
    assert isinstance(live, LiveStore)
    assert live.manifest.shards == ()
    for name in ("n", "rows", "split", "fold"):
        np.testing.assert_array_equal(getattr(live.blocks, name), getattr(converted.blocks, name))
    told = ["patch_id", "location_id", "tile", "acquisition", "slot", "split", "fold", "crs", "transform", "lon", "lat"]
    for wanted, found, light in zip(row_groups(converted), row_groups(live), row_groups(live, told), strict=True):
        assert found.schema.equals(wanted.schema, check_metadata=True)
        assert found.to_pylist() == wanted.to_pylist()
        assert light.equals(wanted.select(told))
    for name in ("size", "scheme", "encoding", "has_clean", "places", "patches"):
        assert getattr(live.manifest, name) == getattr(converted.manifest, name)


def test_the_statistics_are_those_of_ingest_where_the_sample_is_everything(tree, tmp_path):
    converted, live = both(GeoTiffTree(path=tree, bands="3"), tmp_path, Ingest(split="none", exclude=("place1?",)))
    assert live.manifest.histogram == converted.manifest.histogram
    assert live.manifest.seasons == converted.manifest.seasons
    assert live.manifest.source["live"]["sample"] == {"train": {"places": 12, "patches": 24}}
    for name, bands in converted.manifest.statistics["train"].items():
        for wanted, found in zip(bands, live.manifest.statistics["train"][name], strict=True):
            assert found.histogram == wanted.histogram
            assert (found.mean, found.std) == pytest.approx((wanted.mean, wanted.std), rel=1e-9)


def test_the_sample_is_seeded_and_says_how_large_it_is(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(live_index, "SAMPLE", 3)
    first, again, other = (
        index(GeoTiffTree(path=tree), tmp_path / name, Ingest(seed=seed)).manifest
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.source["live"]["sample"]["train"]["places"] == 3
    assert first == again
    assert first.statistics != other.statistics
    assert "3 places of train" in PatchStore.open(tmp_path / "a").describe()


@pytest.mark.parametrize("options", [{}, {"seasons": True}, {"bands": {"s2": ("B4", "B2")}, "start_step": 3}])
def test_the_direct_reader_gives_the_batches_of_the_converted_store(tree, tmp_path, options):
    converted, live = both(GeoTiffTree(path=tree), tmp_path, Ingest(tile=16, folds=2))
    plans = [Plan(store.blocks, seed=0, epochs=2, batch_size=8, lanes=4, window=2) for store in (converted, live)]
    streams = [open_batches(store, plan, **options) for store, plan in zip((converted, live), plans, strict=True)]
    assert [assert_same(*pair) for pair in zip(*streams, strict=True)]


def test_ray_readers_of_two_workers_give_the_batches_of_the_converted_store(ray_session, tree, tmp_path):
    converted, live = both(GeoTiffTree(path=tree), tmp_path)
    plan = Plan(converted.blocks, seed=0, epochs=2, batch_size=8, lanes=4, window=2)
    for rank in range(2):
        wanted = open_batches(converted, plan, reader=DirectReader(), rank=rank, world=2)
        found = open_batches(live, plan, reader=RayReader(cpus=0.5), rank=rank, world=2)
        assert len([assert_same(*pair) for pair in zip(wanted, found, strict=True)]) == plan.steps


def test_a_pretraining_on_the_files_is_the_pretraining_on_the_converted_store(tmp_path):
    losses = []
    for store in both(SyntheticEarth(places=20, size=32), tmp_path):
        journal: list = []
        pretraining.run(
            resolve(TINY, {"optim": {"epochs": 2}}), store, tmp_path / f"out{len(losses)}",
            journal=lambda step, metrics, epoch, into=journal: into.append((step, metrics["train/loss"], metrics["val/loss"])),
        )  # fmt: skip
        losses.append(journal)
    assert len(losses[0]) == 2
    # Not to the last bit: how the math library adds up depends on where in memory a batch happens to lie.
    for one, other in zip(*losses, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_evaluation_and_samples_are_those_of_the_converted_store(tree, tmp_path):
    stores = both(GeoTiffTree(path=tree), tmp_path)
    for pair in zip(*(open_rows(store, batch_size=5, split="train", slot=None) for store in stores), strict=True):
        assert_same(*pair)
    for wanted, found in zip(*(store.sample(7, seed=1) for store in stores), strict=True):
        assert (found.patch_id, found.crs, found.transform, found.notes) == (
            wanted.patch_id, wanted.crs, wanted.transform, wanted.notes
        )  # fmt: skip
        np.testing.assert_array_equal(found.images["s2"], wanted.images["s2"])


def test_an_acquisition_is_decoded_once_a_row_group_however_many_tiles_it_has(tree, tmp_path, monkeypatch):
    index(GeoTiffTree(path=tree), tmp_path / "live", Ingest(tile=8, folds=1))
    store, read = PatchStore.open(tmp_path / "live"), Counter()
    original = GeoTiffTree.load
    monkeypatch.setattr(
        GeoTiffTree, "load", lambda self, place, handle: read.update([str(handle)]) or original(self, place, handle)
    )
    for block in range(len(store.blocks)):
        for slot in range(int(store.blocks.n[block])):
            read.clear()
            table = store.read(block, slot, ["location_id", "acquisition", "s1"])
            assert set(read.values()) == {1}
            assert len(read) == len(
                set(zip(*(table[name].to_pylist() for name in table.column_names[:2]), strict=True))
            )
    assert max(store.blocks.rows) == 16


def test_relative_paths_are_read_from_anywhere(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tree.parent)
    index(GeoTiffTree(path=Path(tree.name)), tmp_path / "live")
    monkeypatch.chdir(tmp_path)
    assert len(PatchStore.open("live").sample(3)) == 3


@pytest.mark.parametrize(
    "handle", [None, "text", "/a/b", 3, Path("/x/b"), Path("/a/b"), ("a", (1, Path("/a/c")), ["/a/b", None])]
)
def test_a_handle_survives_the_index_and_follows_its_folder(handle):
    def survived(root: str) -> Location:
        row = {
            "location_id": "x",
            "came": "test",
            "handle": packed(GeoTiffTree(path="/a"), Location("x", "test", handle)),
        }
        return unpacked(GeoTiffTree(path=root), row)

    assert survived("/a") == Location("x", "test", handle)
    assert type(survived("/a").handle) is type(handle)
    assert repr(survived("/elsewhere").handle) == repr(handle).replace("/a/", "/elsewhere/")


# --- what cannot be used ----------------------------------------------------------------------------------------------


def faulty_tree(root: Path) -> Path:
    """One good location; each of the others has an acquisition whose headers show a fault."""
    geotiff_tree(root, locations=8)
    (root / "place1/2020-00/s1.tif").unlink()
    (root / "place2/2020-01/label.tif").write_bytes(b"no tiff")
    write_tif(root / "place3/2020-01/s1.tif", radar((24, 24)))
    write_tif(root / "place4/2020-00/s2.tif", optical(bands=("B2", "B3")))
    write_tif(root / "place5/2020-01/s1.tif", radar(), crs="EPSG:32634")
    write_tif(root / "place6/2020-00/s2.tif", (optical() // 20).astype(np.uint8))
    acquisition(root / "place7/2020-01", (40, 40))
    return root


def test_what_headers_show_is_skipped_and_named_as_ingest_does(tmp_path, monkeypatch):
    monkeypatch.setattr(live_index, "SAMPLE", 1)
    source = GeoTiffTree(path=faulty_tree(tmp_path / "tree"))
    converted, live = ingest(source, tmp_path / "converted"), index(source, tmp_path / "live")
    assert len(converted.reasons()) == 7
    assert live.reasons() == converted.reasons()
    assert live.manifest.source["skipped"] == live.reasons()
    stores = PatchStore.open(tmp_path / "converted"), PatchStore.open(tmp_path / "live")
    for wanted, found in zip(*(row_groups(store) for store in stores), strict=True):
        assert found.to_pylist() == wanted.to_pylist()


def truncate(path: Path) -> None:
    """Pixels end in the middle of the file; its header is whole, its size as it was."""
    with rasterio.open(path) as file:
        pixels, profile = file.read(), file.profile
    with rasterio.open(path, "w", **(profile | {"compress": "deflate"})) as file:
        file.write(pixels)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def test_a_fault_in_the_pixels_stops_the_stream_with_the_patch_and_the_way_out(tmp_path, monkeypatch):
    root = geotiff_tree(tmp_path / "tree", locations=4)
    truncate(root / "place2/2020-01/s2.tif")
    monkeypatch.setattr(live_index, "SAMPLE", 0)
    source = GeoTiffTree(path=root)
    with pytest.raises(ValueError, match="split train: not one of its places can be read"):
        index(source, tmp_path / "none")
    monkeypatch.setattr(live_index, "SAMPLE", 1)
    assert index(source, tmp_path / "live", Ingest(seed=1)).skipped == []
    store = PatchStore.open(tmp_path / "live")
    with pytest.raises(ValueError, match=r"patch place2/2020-01 cannot be used: s2\.tif: .* --live --exclude place2;"):
        list(open_rows(store, batch_size=2, split="train", slot=None))
    config = Ingest(seed=1, exclude=("place2",))
    index(source, tmp_path / "without", config)
    assert sum(map(len, open_rows(PatchStore.open(tmp_path / "without"), batch_size=2, split="train"))) == 3


def test_a_fault_that_the_sample_meets_is_skipped_and_named(tmp_path):
    root = geotiff_tree(tmp_path / "tree", locations=4)
    truncate(root / "place2/2020-01/s2.tif")
    converted, live = (make(GeoTiffTree(path=root), tmp_path / make.__name__) for make in (ingest, index))
    assert live.reasons() == converted.reasons()
    assert list(live.reasons().values()) == [["place2/2020-01"]]
    stores = PatchStore.open(tmp_path / "ingest"), PatchStore.open(tmp_path / "index")
    for wanted, found in zip(*(row_groups(store) for store in stores), strict=True):
        assert found.to_pylist() == wanted.to_pylist()


def test_an_acquisition_of_another_product_that_the_sample_meets_is_skipped_as_ingest_does(tmp_path, monkeypatch):
    earth, original = SyntheticEarth(places=6, size=32, seasons=2), SyntheticEarth.read
    odd = [location.id for chunk in plan_chunks(earth, Ingest()) for location, _ in chunk.places][3]

    def read(self, location):
        for patch in original(self, location):
            if location.id == odd and patch.acquisition.endswith("1"):
                other = patch.contracts["s2"].model_copy(update={"product": "Sentinel-2 L2A"})
                patch = replace(patch, contracts=patch.contracts | {"s2": other})
            yield patch

    monkeypatch.setattr(SyntheticEarth, "read", read)
    converted, live = ingest(earth, tmp_path / "converted"), index(earth, tmp_path / "live")
    assert live.reasons() == converted.reasons()
    ((reason, (name,)),) = live.reasons().items()
    assert name.startswith(odd)
    assert "the store has Sentinel-2 L1C, this one has Sentinel-2 L2A" in reason
    stores = PatchStore.open(tmp_path / "converted"), PatchStore.open(tmp_path / "live")
    for wanted, found in zip(*(row_groups(store) for store in stores), strict=True):
        assert found.to_pylist() == wanted.to_pylist()


def test_a_patch_without_a_trainable_pixel_stays_as_a_row_of_ignored_labels_and_is_counted(tmp_path):
    root = geotiff_tree(tmp_path / "tree", locations=2)
    acquisition(root / "place1/2020-01", seed=11, label=np.full((32, 32), 200, np.uint8), nodata=200)
    live = index(GeoTiffTree(path=root), tmp_path / "live")
    assert live.manifest.patches == {"train": 4}
    assert live.manifest.source["live"]["untrainable"] == 1
    (batch,) = open_rows(PatchStore.open(tmp_path / "live"), batch_size=4, split="train", slot=None)
    ignored = (batch.labels == IGNORE).flatten(1).all(1).tolist()
    assert [name for name, blank in zip(batch.ids, ignored, strict=True) if blank] == ["place1/2020-01"]


def test_a_source_of_which_nothing_can_be_used_leaves_no_store(tmp_path):
    root = geotiff_tree(tmp_path / "tree", locations=2, seasons=1)
    for file in root.rglob("s1.tif"):
        file.unlink()
    assert main(["geotiff", str(root), str(tmp_path / "live"), "--live"]) == 1
    assert not (tmp_path / "live").exists()


def test_a_layout_whose_locations_do_not_fit_an_index_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(SyntheticEarth, "locations", lambda self: [Location("x", handle={1, 2})])
    with pytest.raises(ValueError, match="leave --live out"):
        index(SyntheticEarth(places=2, size=32), tmp_path / "live")


# --- what has changed since -------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """A tree and a live store that a test may damage: 20 locations in two blocks."""
    root = geotiff_tree(tmp_path / "tree", locations=20)
    index(GeoTiffTree(path=root), tmp_path / "live", Ingest(folds=1))
    return root, tmp_path / "live"


def test_a_file_that_is_gone_refuses_the_store_or_its_block_is_left_out(own):
    root, live = own
    whole = PatchStore.open(live)
    (root / "place7/2020-00/s1.tif").unlink()
    with pytest.raises(ValueError, match=r"block-0000\d has a location .* place7: s1\.tif cannot be read.*geotiff SRC"):
        PatchStore.open(live)
    (lost,) = PatchStore.open(live, check=False).damaged()
    kept = PatchStore.open(live, without=[lost])
    assert lost.patches + 2 * kept.places("train") == 40
    assert kept.digest != whole.digest
    ids = [name for batch in open_rows(kept, batch_size=4, split="train") for name in batch.ids]
    assert not any(name.startswith("place7/") for name in ids)


def test_a_file_of_another_size_is_found_at_the_start_and_another_header_by_verify(own, capsys):
    root, live = own
    assert main(["--verify", str(live)]) == 0
    path = root / "place3/2020-01/label.tif"
    write_tif(path, classes(seed=31), crs="EPSG:32634")
    assert path.stat().st_size == (root / "place4/2020-01/label.tif").stat().st_size
    assert not PatchStore.open(live, check=False).damaged()
    assert PatchStore.open(live, check=False).damaged(content=True)
    assert main(["--verify", str(live)]) == 1
    assert "place3" in capsys.readouterr().out
    path.write_bytes(path.read_bytes() + b"0")
    assert "of other sizes" in PatchStore.open(live, check=False).damaged()[0].reason
    assert main(["--repair", str(live)]) == 2


def test_a_file_that_moved_on_earth_is_refused_while_it_streams(own):
    root, live = own
    for name, pixels in (("s1", radar(seed=30)), ("s2", optical(seed=30)), ("label", classes(seed=30))):
        write_tif(root / f"place3/2020-00/{name}.tif", pixels, crs="EPSG:32634")
    with pytest.raises(ValueError, match=r"place3/2020-00 cannot be used: has another size, CRS or transform"):
        list(row_groups(PatchStore.open(live, check=False)))


def test_the_digest_is_that_of_index_and_settings_wherever_the_files_lie(tree, tmp_path):
    moved = shutil.copytree(tree, tmp_path / "elsewhere")
    digests = {}
    for name, source in {
        "here": GeoTiffTree(path=tree),
        "moved": GeoTiffTree(path=moved),
        "offset": GeoTiffTree(path=tree, offset="1000"),
        "bands": GeoTiffTree(path=tree, bands="9"),
    }.items():
        index(source, tmp_path / name)
        digests[name] = PatchStore.open(tmp_path / name).digest
    assert digests["here"] == digests["moved"]
    assert len(set(digests.values())) == 3
    acquisition(moved / "place0/2020-02", seed=3)
    index(GeoTiffTree(path=moved), tmp_path / "more")
    assert PatchStore.open(tmp_path / "more").digest != digests["here"]


def test_an_index_that_is_not_the_manifests_is_refused(own, tmp_path):
    root, live = own
    index(GeoTiffTree(path=root), tmp_path / "other", Ingest(seed=5))
    shutil.copy(tmp_path / "other/index.parquet", live / "index.parquet")
    with pytest.raises(ValueError, match=r"index\.parquet: is not what was written; index it again"):
        PatchStore.open(live)
    (live / "index.parquet").unlink()
    with pytest.raises(ValueError, match=r"index\.parquet: cannot be read"):
        PatchStore.open(live)


def test_the_verb_makes_a_live_store_and_describes_it(tree, tmp_path, capsys):
    assert main(["geotiff", str(tree), str(tmp_path / "live"), "--live", "--tile", "16"]) == 0
    assert sorted(path.name for path in (tmp_path / "live").iterdir()) == ["index.parquet", "manifest.json"]
    assert main(["--describe", str(tmp_path / "live")]) == 0
    said = capsys.readouterr().out
    assert "live: rows are made from the source's files" in said
    assert f"{tree}, 19 locations" in said
