"""What real samples do that made-up ones do not, one test a trap. Which locations carry an offset or lack bands, and
that all are read, is in test_layouts.py; stores of them are in test_real.py."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from trees import radar, write_tif

from cromss.data.ingestion import Ingest, ingest
from cromss.data.patch import Patch, trainable
from cromss.data.sources.geotiff import GeoTiffTree
from cromss.data.sources.ssl4eo import Ssl4eo
from cromss.data.store import PatchStore
from cromss.landcover import DYNAMIC_WORLD, IGNORE
from cromss.sensors import SENTINEL1, SENTINEL2

REAL = Path(__file__).parents[3] / "shared/data/real"
PAIRS, SSL4EO = REAL / "pairs", REAL / "ssl4eo-s12"
pytestmark = pytest.mark.skipif(not PAIRS.is_dir(), reason="the real samples are not beside this checkout")

NAMES = {
    "282D": "terramesh-282D_485L_3_3",
    "38D": "terramesh-38D_378R_2_3",
    "609U": "terramesh-609U_541L_3_0",
    "cloudy": "sen12mscr-ROIs1970_fall_139_p839",
    "floods": "sen1floods11-Spain_7370579",
    "crops": "worldcereal-wc_belgium_100",
}
CROPS = {"bands": "9", "offset": "0"}  # what must be stated for the location of nine bands


def read(place: str, **options) -> list[Patch]:
    """All acquisitions of one location."""
    source = GeoTiffTree(path=PAIRS, **options)
    (location,) = (one for one in source.locations() if one.id == NAMES[place])
    found = list(source.read(location))
    assert all(isinstance(one, Patch) for one in found), found
    return found


def stored(patch: Patch, name: str) -> rasterio.DatasetReader:
    """An open file of an acquisition."""
    return rasterio.open(PAIRS / patch.patch_id / f"{name}.tif")


def pixels(patch: Patch, name: str) -> np.ndarray:
    with stored(patch, name) as file:
        return file.read()


@pytest.fixture
def ssl4eo(tmp_path) -> Ssl4eo:
    """The real location in its own tree: links, and a made-up radar beside."""
    (product,) = (SSL4EO / "s2c/0000000").iterdir()
    (tmp_path / "s2c").symlink_to(SSL4EO / "s2c")
    (tmp_path / "dw_noisy_labels").symlink_to(SSL4EO / "dw_noisy_labels")
    with rasterio.open(product / "B2.tif") as file:
        grid = {"crs": file.crs, "transform": file.transform}
    for index, band in enumerate(SENTINEL1.bands):
        write_tif(tmp_path / f"s1/0000000/S1A/{band}.tif", radar((264, 264))[index], **grid)
    return Ssl4eo(path=tmp_path)


@pytest.mark.parametrize(
    ("place", "offset"), [("282D", 1000), ("609U", 1000), ("38D", 0), ("cloudy", 0), ("floods", 0)]
)
def test_the_offset_goes_where_it_is_and_only_there(place, offset):
    """Band 10 tells them apart: at most 55 without, at least 1005 with it."""
    for patch in read(place):
        as_stored = pixels(patch, "s2").astype(int)
        cirrus = np.percentile(as_stored[SENTINEL2.bands.index("B10")], 1)
        assert (cirrus >= 1005) if offset else (cirrus <= 55)
        np.testing.assert_array_equal(patch.images["s2"], np.maximum(as_stored - offset, 0))


def test_a_tile_of_one_class_is_a_tile_like_others(tmp_path):
    (patch,) = read("609U")
    assert np.unique(patch.label).tolist() == [DYNAMIC_WORLD.classes.index("snow and ice")]
    assert trainable(patch.label, patch.valid)
    ingest(GeoTiffTree(path=PAIRS), tmp_path / "store", Ingest(include=("*609U*",)))
    counts = PatchStore.open(tmp_path / "store").manifest.histogram["train"]
    assert {name: count for name, count in counts.items() if count} == {"snow and ice": 224 * 224}


@pytest.mark.parametrize(("place", "dtype"), [("38D", "float64"), ("floods", "float32")])
def test_radar_keeps_its_values_in_float32_and_float64(place, dtype):
    (patch,) = read(place)
    assert pixels(patch, "s1").dtype == patch.images["s1"].dtype == dtype
    np.testing.assert_array_equal(patch.images["s1"], pixels(patch, "s1"))


def test_radar_clipped_at_0_db_is_data_not_a_gap():
    for patch in read("cloudy"):
        clipped = patch.images["s1"] == 0
        assert clipped.any()
        assert patch.images["s1"].max() == 0
        assert not clipped.all(axis=0).any()  # or it would read as a gap
        assert patch.valid is None


def test_radar_of_26_db_is_decibel_not_linear_power():
    (patch,) = read("floods")
    assert 25 < patch.images["s1"].max() < 27
    assert "s1" not in patch.notes


@pytest.mark.parametrize(("place", "dtype"), [("38D", "int16"), ("floods", "int16"), ("cloudy", "uint16")])
def test_optical_images_keep_their_values_in_int16_and_uint16(place, dtype):
    for patch in read(place):
        assert pixels(patch, "s2").dtype == patch.images["s2"].dtype == dtype


def test_one_raw_store_holds_all_these_types_exactly(tmp_path):
    source = GeoTiffTree(path=PAIRS, **CROPS)
    ingest(source, tmp_path / "store", Ingest(tile=96, encoding="raw"))
    originals = {patch.patch_id: patch for place in NAMES for patch in read(place, **CROPS)}
    tiles = PatchStore.open(tmp_path / "store").sample(100)
    assert {tile.location_id.split("/")[0] for tile in tiles} == set(NAMES.values())
    for tile in tiles:
        whole, corner = originals[f"{tile.location_id.split('/')[0]}/{tile.acquisition}"], tile.tile
        row, column = (96 * int(number) for number in corner[1:].split("c"))
        cut = np.s_[..., row : row + 96, column : column + 96]
        np.testing.assert_array_equal(tile.images["s2"], whole.images["s2"][cut])
        np.testing.assert_array_equal(tile.images["s1"], whole.images["s1"][cut].astype(np.float32))
        np.testing.assert_array_equal(tile.label, whole.label[cut])


def test_band_names_are_followed_where_present_and_the_13_band_order_where_missing():
    wanted = ("B12", "B4", "B8")
    for place, named, positions in (
        ("38D", False, (12, 3, 7)),
        ("floods", True, (12, 3, 7)),
        ("crops", True, (8, 2, 6)),
    ):
        for patch in read(place, **CROPS | {"bands": ",".join(wanted)}):
            with stored(patch, "s2") as file:
                found = [(file.descriptions[index] or "") for index in positions]
            assert found == (list(wanted) if named else [""] * 3)
            np.testing.assert_array_equal(patch.images["s2"], pixels(patch, "s2")[list(positions)])


@pytest.mark.parametrize(("place", "side"), [("crops", 100), ("38D", 224), ("cloudy", 256), ("floods", 512)])
def test_patches_come_in_their_own_size_and_are_cut_to_one(place, side, tmp_path):
    acquisitions = read(place, **CROPS)
    assert {patch.size for patch in acquisitions} == {(side, side)}
    config = Ingest(include=(NAMES[place],), tile=48)
    summary = ingest(GeoTiffTree(path=PAIRS, **CROPS), tmp_path / "store", config)
    assert summary.manifest.size == (48, 48)
    assert summary.patches == len(acquisitions) * (side // 48) ** 2


def test_patches_of_264_come_from_the_ssl4eo_tree_and_are_cut_to_the_same_size(ssl4eo, tmp_path_factory):
    summary = ingest(ssl4eo, tmp_path_factory.mktemp("cut") / "store", Ingest(tile=48))
    assert (summary.manifest.size, summary.patches) == ((48, 48), (264 // 48) ** 2)


@pytest.mark.parametrize(
    ("place", "acquisitions"),
    [("floods", ["0"]), ("cloudy", ["0", "1-cloudy"]), ("crops", ["20201101", "20210401", "20210701", "20211001"])],
)
def test_a_location_has_one_two_or_four_acquisitions_in_time_order(place, acquisitions, tmp_path):
    patches = read(place, **CROPS)
    assert [patch.acquisition for patch in patches] == acquisitions
    assert len({patch.label.tobytes() for patch in patches}) == len(acquisitions)  # labels change with the date
    ingest(GeoTiffTree(path=PAIRS, **CROPS), tmp_path / "store", Ingest(include=(NAMES[place],)))
    assert PatchStore.open(tmp_path / "store").slots == len(acquisitions)


def test_transforms_that_differ_in_the_tenth_digit_are_one_grid():
    (patch,) = read("floods", label="reference.tif", scheme="water")
    with stored(patch, "s2") as image, stored(patch, "reference") as label:
        assert image.transform != label.transform
        assert image.transform.almost_equals(label.transform, 1e-12)
        expected = label.read(1)
    np.testing.assert_array_equal(patch.label, np.where(expected < 0, IGNORE, expected))


def test_bands_of_the_ssl4eo_tree_share_a_grid_though_their_corners_do_not_meet(ssl4eo):
    """The 60 m bands begin 2.5 pixels of 10 m further west and north than the 10 m bands."""
    (product,) = (SSL4EO / "s2c/0000000").iterdir()
    with rasterio.open(product / "B2.tif") as fine, rasterio.open(product / "B9.tif") as coarse:
        assert 2 < (fine.transform.c - coarse.transform.c) / fine.transform.a < 3
        transform = fine.transform
    (patch,) = ssl4eo.read(ssl4eo.locations()[0])
    assert isinstance(patch, Patch), patch
    assert patch.transform == transform[:6]


def test_nine_bands_set_the_stores_bands_or_that_location_is_skipped_and_named(tmp_path):
    common = ingest(GeoTiffTree(path=PAIRS, **CROPS), tmp_path / "nine", Ingest(tile=96))
    assert (common.skipped, PatchStore.open(tmp_path / "nine").bands["s2"]) == ([], SENTINEL2.subsets["9"])
    every = ingest(GeoTiffTree(path=PAIRS), tmp_path / "thirteen", Ingest(tile=96))
    assert PatchStore.open(tmp_path / "thirteen").bands["s2"] == SENTINEL2.bands
    (reason,) = every.reasons()
    assert reason.startswith("lacks B1, B8A, B9, B10 of the store's bands")
    assert {skipped.name.split("/")[0] for skipped in every.skipped} == {NAMES["crops"]}
