"""The verb: what goes in comes out of the store, what cannot is named, and wrong arguments start nothing."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "data"))  # the tree generators
from trees import acquisition, classes, dfc2020_tree, geotiff_tree, optical, radar, ssl4eo_tree, write_tif

from cromss.contract import physical
from cromss.data.patch import Patch
from cromss.data.sources.base import Location, Skipped, Source
from cromss.data.sources.dfc2020 import Dfc2020
from cromss.data.sources.geotiff import GeoTiffTree
from cromss.data.sources.layouts import LAYOUTS
from cromss.data.sources.ssl4eo import Ssl4eo
from cromss.data.store import PatchStore
from cromss.ingest import Ingest, ingest, main
from cromss.landcover import IGNORE
from cromss.sensors import SENSORS, SENTINEL1, SENTINEL2

PAIRS = Path(__file__).parents[1] / "../shared/data/real/pairs"
needs_real = pytest.mark.skipif(not PAIRS.is_dir(), reason="the real samples are not beside this checkout")


def contents(store: Path) -> dict[str, Patch]:
    """Every patch of a store with one acquisition a place, by id."""
    opened = PatchStore.open(store)
    return {
        patch.patch_id: patch
        for split in opened.splits
        for patch in opened.sample(opened.manifest.places[split], split)
    }


def rows(store: Path) -> list[dict]:
    """The described columns of every row, in file order."""
    opened = PatchStore.open(store)
    columns = ["patch_id", "location_id", "tile", "split", "fold", "slot"]
    return [
        row
        for block in range(len(opened.blocks))
        for slot in range(int(opened.blocks.n[block]))
        for row in opened.read(
            int(opened.blocks.shard[block]), int(opened.blocks.first[block]) + slot, columns
        ).to_pylist()
    ]


# --- in and out -------------------------------------------------------------------------------------------------------


def test_raw_pixels_come_out_as_they_were_in_the_files(tmp_path):
    root = geotiff_tree(tmp_path / "tree", locations=3, seasons=1)
    summary = ingest(GeoTiffTree(path=root), tmp_path / "store", Ingest(encoding="raw"))
    found = contents(tmp_path / "store")
    assert summary.patches == len(found) == 3
    for place in range(3):
        patch = found[f"place{place}/2020-00"]
        np.testing.assert_array_equal(patch.images["s1"], radar(seed=10 * place))
        np.testing.assert_array_equal(patch.images["s2"], optical(seed=10 * place))
        np.testing.assert_array_equal(patch.label, classes(seed=10 * place))
        assert patch.crs == "EPSG:32633"
        assert patch.notes == {"s2_offset": "none, by B10"}


def test_the_8bit_release_is_stored_with_the_codes_it_came_with(tmp_path):
    root = ssl4eo_tree(tmp_path / "tree", ids=1, seasons=1, coded=True)
    ingest(Ssl4eo(path=root), tmp_path / "store")
    store = PatchStore.open(tmp_path / "store")
    row = store.read(0, 0, ["s1", "s2"]).to_pylist()[0]
    np.testing.assert_array_equal(
        np.frombuffer(row["s1"], np.uint8).reshape(2, 24, 24),
        SENTINEL1.encode(radar((24, 24)), SENTINEL1.bands),
    )
    blue = SENTINEL2.encode(optical((24, 24), bands=["B2"]), ["B2"])[0]
    np.testing.assert_array_equal(np.frombuffer(row["s2"], np.uint8).reshape(13, 24, 24)[1], blue)


def test_the_8bit_release_cannot_be_stored_raw(tmp_path):
    root = ssl4eo_tree(tmp_path / "tree", ids=1, seasons=1, coded=True)
    summary = ingest(Ssl4eo(path=root), tmp_path / "store", Ingest(encoding="raw"))
    assert list(summary.reasons()) == ["8-bit codes hold no raw values; use --encoding uint8"]
    assert summary.manifest is None
    assert not (tmp_path / "store").exists()


def test_tiles_of_one_window_are_one_place_over_all_acquisitions(tmp_path):
    root = geotiff_tree(tmp_path / "tree", locations=2, seasons=3)
    ingest(GeoTiffTree(path=root), tmp_path / "store", Ingest(tile=16))
    found = rows(tmp_path / "store")
    assert len({row["patch_id"] for row in found}) == len(found) == 2 * 3 * 4
    by_place: dict = {}
    for row in found:
        by_place.setdefault((row["location_id"], row["tile"]), set()).add(row["patch_id"].split("/")[1])
    assert len(by_place) == 8
    assert all(seasons == {"2020-00", "2020-01", "2020-02"} for seasons in by_place.values())


def test_folds_go_by_location_and_are_as_many_as_asked_or_as_there_are(tmp_path):
    root = geotiff_tree(tmp_path / "tree", locations=6, seasons=1)
    for asked, expected in ((3, 3), (100, 6)):
        store = tmp_path / f"store{asked}"
        ingest(GeoTiffTree(path=root), store, Ingest(tile=16, folds=asked))
        folds = {}
        for row in rows(store):
            folds.setdefault(row["location_id"], set()).add(row["fold"])
        assert all(len(of_location) == 1 for of_location in folds.values())
        assert {fold for one in folds.values() for fold in one} == set(range(expected))
        written = [row["fold"] for row in rows(store)]
        assert written == sorted(written)  # fold by fold, so that one fold at a time waits in memory


def test_the_order_of_locations_follows_the_seed(tmp_path):
    root = geotiff_tree(tmp_path / "tree", locations=6, seasons=1)
    orders = []
    for number, seed in enumerate((0, 0, 1)):
        ingest(GeoTiffTree(path=root), tmp_path / f"store{number}", Ingest(seed=seed))
        orders.append([row["patch_id"] for row in rows(tmp_path / f"store{number}")])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_no_test_pixel_of_halves_is_a_training_pixel_of_any_store_of_the_same_split(tmp_path):
    root = geotiff_tree(tmp_path / "tree", locations=1, seasons=1, size=(32, 48))
    reach = {}
    for tile in (8, 16):
        ingest(GeoTiffTree(path=root), tmp_path / f"{tile}", Ingest(tile=tile, split="halves", guard=16))
        for patch in contents(tmp_path / f"{tile}").values():
            left = (patch.transform[2] - 500000) / 10
            reach.setdefault(patch.split, []).append((left, left + tile))
    assert max(right for _, right in reach["train"]) + 16 <= min(left for left, _ in reach["test"])


def test_dfc2020_becomes_a_raw_store_of_train_and_test(tmp_path):
    summary = ingest(Dfc2020(path=dfc2020_tree(tmp_path / "tree")), tmp_path / "store")
    assert summary.manifest.encoding == "raw"
    assert summary.manifest.patches == {"train": 3, "test": 2}
    assert summary.manifest.scheme == "dfc2020"


def test_bands_of_the_store_are_named_and_in_order(tmp_path):
    root = geotiff_tree(tmp_path / "tree", locations=1, seasons=1)
    ingest(GeoTiffTree(path=root, bands="3"), tmp_path / "store", Ingest(encoding="raw"))
    assert PatchStore.open(tmp_path / "store").bands == {"s1": ("VV", "VH"), "s2": ("B4", "B3", "B2")}
    (patch,) = contents(tmp_path / "store").values()
    np.testing.assert_array_equal(patch.images["s2"], optical()[[3, 2, 1]])


def test_bands_are_chosen_for_a_source_that_always_yields_all(tmp_path):
    synthetic = LAYOUTS["synthetic"](places=1, seasons=1, size=32)
    ingest(synthetic, tmp_path / "all", Ingest(encoding="raw"))
    ingest(synthetic, tmp_path / "nine", Ingest(encoding="raw", bands="9"))
    (whole,), (nine,) = contents(tmp_path / "all").values(), contents(tmp_path / "nine").values()
    np.testing.assert_array_equal(nine.images["s2"], whole.images["s2"][SENTINEL2.indices("9")])
    assert whole.clean is not None


# --- what is skipped --------------------------------------------------------------------------------------------------


def test_a_skipped_patch_is_counted_named_and_loses_nothing(tmp_path):
    root = geotiff_tree(tmp_path / "tree", locations=3, seasons=2)
    (root / "place1/2020-00/s2.tif").write_bytes(b"no tif")
    acquisition(root / "place2/2020-01", label=np.full((32, 32), IGNORE, np.uint8))
    write_tif(root / "place0/2020-01/label.tif", np.full((32, 32), 77, np.uint8))
    summary = ingest(GeoTiffTree(path=root), tmp_path / "store")
    assert {one.name for one in summary.skipped} == {"place1/2020-00", "place2/2020-01", "place0/2020-01"}
    assert {row["patch_id"] for row in rows(tmp_path / "store")} == {
        "place0/2020-00",
        "place1/2020-01",
        "place2/2020-00",
    }
    recorded = json.loads((tmp_path / "store/manifest.json").read_text())["source"]
    assert sorted(name for names in recorded["skipped"].values() for name in names) == sorted(
        one.name for one in summary.skipped
    )
    assert recorded["offsets"] == {"none, by B10": 4}  # of those that could be read
    for name in ("place1/2020-00", "not a readable GeoTIFF", "[77]", "no labelled pixel"):
        assert name in str(summary)


def test_patches_of_another_size_are_skipped_with_the_remedy(tmp_path):
    for number in range(3):
        acquisition(tmp_path / f"tree/a{number}/0", (32, 32))
    acquisition(tmp_path / "tree/b/0", (48, 48))
    summary = ingest(GeoTiffTree(path=tmp_path / "tree"), tmp_path / "store")
    assert summary.patches + len(summary.skipped) == 4
    assert all("--tile cuts all to one size" in one.reason for one in summary.skipped)
    cut = ingest(GeoTiffTree(path=tmp_path / "tree"), tmp_path / "cut", Ingest(tile=16))
    assert (cut.patches, cut.skipped) == (3 * 4 + 9, [])


def test_a_source_that_fails_on_a_location_costs_that_location_alone(tmp_path):
    class Flaky(Source):
        kind: str = "flaky"
        scheme: str = "dynamic-world"

        def locations(self):
            return [Location(str(number)) for number in range(4)]

        def read(self, location):
            if location.id == "2":
                raise OSError("the disk is gone")
            images = {"s1": radar(), "s2": optical()}
            contracts = {name: physical(name, SENSORS[name].bands) for name in images}
            yield Patch(f"{location.id}/0", location.id, "0", images, contracts, classes())

    summary = ingest(Flaky(), tmp_path / "store")
    assert summary.patches == 3
    assert summary.skipped == [Skipped("2", "the disk is gone")]


# --- command line -----------------------------------------------------------------------------------------------------


def test_the_command_line_ingests_describes_and_verifies(tmp_path, capsys):
    root = geotiff_tree(tmp_path / "tree")
    store = str(tmp_path / "store")
    arguments = ["--tile", "16", "--bands", "9", "--exclude", "*2", "--folds", "2", "--encoding", "raw"]
    assert main(["geotiff", str(root), store, *arguments]) == 0
    said = capsys.readouterr()
    assert "16 patches of 8 places" in said.out
    assert "2/2 locations, 16 patches, 0 skipped" in said.err
    assert "ETA 0:00:00" in said.err
    assert main(["--describe", store]) == 0
    assert "B2 B3 B4 B5 B6 B7 B8 B11 B12" in capsys.readouterr().out
    assert main(["--verify", store]) == 0
    shard = next((tmp_path / "store").glob("*.parquet"))
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    assert main(["--verify", store]) == 1
    assert shard.name in capsys.readouterr().out


def test_nested_settings_of_a_layout_are_reached_by_set(tmp_path):
    arguments = ["--places", "2", "--seasons", "1", "--size", "32", "--seed", "3", "--set", "noise.kind=none"]
    assert main(["synthetic", str(tmp_path / "store"), *arguments]) == 0
    origin = PatchStore.open(tmp_path / "store").manifest.source
    assert origin["layout"]["noise"]["kind"] == "none"
    assert origin["layout"]["seed"] == origin["ingest"]["seed"] == 3
    assert all(
        (patch.label == patch.clean)[patch.label != IGNORE].all() for patch in contents(tmp_path / "store").values()
    )


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_help_lists_every_layout_and_each_explains_its_options(kind, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert kind in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main([kind, "--help"])
    said = capsys.readouterr().out
    assert "--tile" in said
    assert ("SRC" in said) == ("path" in LAYOUTS[kind].model_fields)


def test_nothing_usable_is_exit_1_with_the_reasons_and_leaves_no_store(tmp_path, capsys):
    root = geotiff_tree(tmp_path / "tree", locations=1, seasons=1)
    (root / "place0/2020-00/s1.tif").unlink()
    assert main(["geotiff", str(root), str(tmp_path / "store")]) == 1
    said = capsys.readouterr().out
    assert "place0/2020-00" in said
    assert "s1.tif: missing" in said
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("live", [[], ["--live"]])
def test_nothing_usable_leaves_alone_what_somebody_put_there(tmp_path, monkeypatch, live):
    def fails(self, location):
        (tmp_path / "store" / "notes.txt").touch()
        yield Skipped(location.id, "no good")

    monkeypatch.setattr("cromss.data.synthetic.SyntheticEarth.read", fails)
    assert main(["synthetic", str(tmp_path / "store"), "--places", "2", *live]) == 1
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["notes.txt"]


def test_ctrl_c_is_no_crash(tmp_path, capsys, monkeypatch):
    def interrupted(self, location):
        raise KeyboardInterrupt

    monkeypatch.setattr("cromss.data.synthetic.SyntheticEarth.read", interrupted)
    assert main(["synthetic", str(tmp_path / "store"), "--places", "2"]) == 130
    assert capsys.readouterr().err == (
        "interrupted; the same command (a sweep: with its --out) goes on from what is there\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a layout (geotiff, ssl4eo, "),
        (["geotif", "{tree}", "{store}"], "invalid choice: 'geotif'"),
        (["geotiff", "{tree}"], "required: STORE"),
        (["geotiff", "{tree}", "{store}", "--tiles", "16"], "unrecognized arguments: --tiles 16"),
        (["geotiff", "{tree}", "{store}", "--tile", "2"], "tile=2: must lie in [8, inf)"),
        (["geotiff", "{tree}", "{store}", "--bands", "B99"], "no band 'B99'"),
        (["geotiff", "{tree}", "{store}", "--offset", "500"], "offset=500: unknown"),
        (["geotiff", "{tree}", "{store}", "--scheme", "dw"], "label scheme 'dw': unknown"),
        (["geotiff", "{tree}", "{store}", "--include", "x*"], "leaves none of 3 locations, for example place0"),
        (["geotiff", "{empty}", "{store}"], "holds no <location>/<acquisition>"),
        (["geotiff", "{tree}/nowhere", "{store}"], "cannot be read (No such file or directory)"),
        (["geotiff", "{tree}", "{tree}"], "already holds something"),
        (["geotiff", "{tree}", "{file}/store"], "cannot be written"),
        (["--describe", "{empty}"], "empty"),
        (["--verify", "{empty}"], "empty"),
        (["--verify", "{empty}", "--repair", "{empty}"], "--repair: not allowed with argument --verify"),
        (["--leakage", "{empty}", "{empty}", "--describe", "{empty}"], "not allowed with argument --leakage"),
    ],
)
def test_wrong_arguments_are_exit_2_and_one_line(tmp_path, capsys, arguments, message):
    places = {"tree": geotiff_tree(tmp_path / "tree", seasons=1), "store": tmp_path / "store"}
    places |= {"empty": tmp_path / "empty", "file": tmp_path / "file"}
    places["empty"].mkdir()
    places["file"].touch()
    assert main([argument.format(**places) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "ETA" not in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "store").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_output_is_exit_2(tmp_path, capsys):
    root = geotiff_tree(tmp_path / "tree", seasons=1)
    (tmp_path / "locked").mkdir(mode=0o500)
    assert main(["geotiff", str(root), str(tmp_path / "locked/store")]) == 2
    assert "cannot be written" in capsys.readouterr().err


# --- real samples -----------------------------------------------------------------------------------------------------


@needs_real
def test_the_real_pairs_become_one_store_of_tiles(tmp_path, capsys):
    arguments = ["--tile", "64", "--bands", "9", "--offset", "0", "--split", "halves"]
    assert main(["geotiff", str(PAIRS), str(tmp_path / "store"), *arguments]) == 0
    said = capsys.readouterr().out
    assert "1000 removed, by B10: 2" in said
    assert "none, stated: 4" in said
    assert "worldcereal-wc_belgium_100" in said  # halves of 18 columns hold no tile of 64: named
    found = rows(tmp_path / "store")
    assert {row["location_id"].split("-")[0] for row in found} == {"terramesh", "sen12mscr", "sen1floods11"}
    assert {row["split"] for row in found} == {"train", "test"}


def test_an_unwritable_store_is_refused_before_anything_is_read(capsys, monkeypatch, tmp_path):
    def read(self, location):
        raise AssertionError("read before the store was claimed")

    monkeypatch.setattr("cromss.data.synthetic.SyntheticEarth.read", read)
    assert main(["synthetic", "/proc/nowhere"]) == 2
    assert "/proc/nowhere: cannot be written" in capsys.readouterr().err
