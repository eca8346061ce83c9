"""What was in the files is what is in the patches, and every fault is a reason, never an exception."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from trees import (
    GRID,
    acquisition,
    classes,
    dfc2020_tree,
    geotiff_tree,
    optical,
    radar,
    ssl4eo_tree,
    write_tif,
)

from cromss.data.patch import Patch
from cromss.data.sources.base import Skipped
from cromss.data.sources.dfc2020 import Dfc2020
from cromss.data.sources.geotiff import GeoTiffTree
from cromss.data.sources.layouts import LAYOUTS
from cromss.data.sources.ssl4eo import Ssl4eo
from cromss.landcover import DFC2020, IGNORE
from cromss.sensors import SENTINEL1, SENTINEL2
from cromss.settings import validate

PAIRS = Path(__file__).parents[2] / "../shared/data/real/pairs"
REAL_SSL4EO = PAIRS.parent / "ssl4eo-s12"
needs_real = pytest.mark.skipif(not PAIRS.is_dir(), reason="the real samples are not beside this checkout")


def read_all(source) -> dict[str, Patch | Skipped]:
    """By patch id (or the name of what was skipped)."""
    found = [one for location in source.locations() for one in source.read(location)]
    return {one.patch_id if isinstance(one, Patch) else one.name: one for one in found}


def only(folder: Path, **options) -> Patch | Skipped:
    """The one acquisition of the one location of a tree."""
    (found,) = read_all(GeoTiffTree(path=folder, **options)).values()
    return found


def pixels_of(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


# --- what is in the files is in the patches ---------------------------------------------------------------------------


def test_a_geotiff_tree_is_read_pixel_by_pixel_in_time_order(tmp_path):
    root = geotiff_tree(tmp_path / "tree")
    found = read_all(GeoTiffTree(path=root))
    assert list(found) == [f"place{place}/2020-{season:02d}" for place in range(3) for season in range(2)]
    for name, patch in found.items():
        for modality in ("s1", "s2"):
            np.testing.assert_array_equal(patch.images[modality], pixels_of(root / name / f"{modality}.tif"))
        np.testing.assert_array_equal(patch.label, pixels_of(root / name / "label.tif")[0])
        assert (patch.crs, patch.transform, patch.valid) == ("EPSG:32633", GRID[:6], None)
        assert patch.notes == {"s2_offset": "none, by B10"}
        assert patch.patch_id == f"{patch.location_id}/{patch.acquisition}"


def test_bands_are_kept_by_name_whatever_their_order_in_the_file(tmp_path):
    shuffled = tuple(reversed(SENTINEL2.bands))
    folder = acquisition(tmp_path / "tree/a/0", s2=optical())
    write_tif(folder / "s2.tif", optical()[::-1], names=[band.replace("B", "B0", 1) for band in shuffled])
    write_tif(folder / "s1.tif", radar()[::-1], names=["VH", "VV"])
    patch = only(tmp_path / "tree", bands="B4,B3,B2")
    np.testing.assert_array_equal(patch.images["s2"], optical()[SENTINEL2.indices(["B4", "B3", "B2"])])
    np.testing.assert_array_equal(patch.images["s1"], radar())


def test_ssl4eo_pairs_seasons_by_order_and_keeps_the_10m_bands_exact(tmp_path):
    root = ssl4eo_tree(tmp_path / "tree")
    found = read_all(Ssl4eo(path=root))
    assert [name for name in found if name.startswith("0000001")] == [
        f"0000001/2020{month:02d}20T100000_T32UPU" for month in (1, 4, 7, 10)
    ]
    for season, patch in enumerate(found["0000001/" + product] for product in sorted(
        folder.name for folder in (root / "s2c/0000001").iterdir())):  # fmt: skip
        np.testing.assert_array_equal(patch.images["s1"], radar((24, 24), 10 + season))
        for band in ("B2", "B3", "B4", "B8"):
            native = pixels_of(root / "s2c" / patch.patch_id / f"{band}.tif")
            np.testing.assert_array_equal(patch.images["s2"][SENTINEL2.indices([band])], native)
        np.testing.assert_array_equal(patch.label, classes((24, 24), 10 + season))
        assert patch.images["s2"].shape == (13, 24, 24)
        # bilinear weights are positive: a coarse band keeps its range
        coarse = pixels_of(root / "s2c" / patch.patch_id / "B9.tif")
        assert coarse.min() <= patch.images["s2"][9].min() <= patch.images["s2"][9].max() <= coarse.max()


@pytest.mark.parametrize("header", ["id,sub1,sub2\n", ""], ids=["header", "bare"])
def test_a_csv_of_complete_ids_chooses_locations_and_seasons(tmp_path, header):
    root = ssl4eo_tree(tmp_path / "tree")
    chosen = ["20200720T100000_T32UPU", "20200120T100000_T32UPU"]
    (root / "dw_complete_ids.csv").write_text(f"{header}1,{','.join(chosen)}\n")
    assert list(read_all(Ssl4eo(path=root))) == [f"0000001/{season}" for season in sorted(chosen)]


def test_the_8bit_release_ends_with_the_same_codes(tmp_path):
    root = ssl4eo_tree(tmp_path / "tree", ids=1, seasons=1, coded=True)
    (patch,) = read_all(Ssl4eo(path=root)).values()
    for modality, sensor, folder in (("s1", SENTINEL1, "s1"), ("s2", SENTINEL2, "s2c")):
        codes = sensor.encode(patch.images[modality], sensor.bands)
        for band, found in zip(sensor.bands, codes, strict=True):
            stored = pixels_of(next((root / folder / "0000000").glob(f"*/{band}.tif")))[0]
            if stored.shape == found.shape:
                np.testing.assert_array_equal(found, stored)


def test_dfc2020_is_found_at_any_depth_and_its_validation_set_trains(tmp_path):
    root = dfc2020_tree(tmp_path / "tree")
    found = read_all(Dfc2020(path=root))
    assert [(patch.split, patch.location_id) for patch in found.values()] == [
        ("test", "test_0_p0"),
        ("test", "test_0_p1"),
        ("train", "validation_0_p0"),
        ("train", "validation_0_p1"),
        ("train", "validation_0_p2"),
    ]
    patch = found["validation_0_p2/0"]
    np.testing.assert_array_equal(patch.images["s2"], optical(seed=2))
    np.testing.assert_array_equal(patch.images["s1"], radar(seed=2))
    np.testing.assert_array_equal(patch.label, DFC2020.read(classes(seed=2, among=(1, 2, 4, 5, 6, 7, 9, 10))))
    assert Dfc2020(path=root).encoding == "raw"


@pytest.mark.parametrize("kind", [kind for kind in LAYOUTS if "path" in LAYOUTS[kind].model_fields])
@pytest.mark.parametrize("state", ["missing", "empty"])
def test_an_empty_or_missing_folder_is_an_error(tmp_path, kind, state):
    folder = tmp_path / "nothing"
    if state == "empty":
        folder.mkdir()
    with pytest.raises(ValueError, match="nothing"):
        LAYOUTS[kind](path=folder).locations()


# --- radiometry -------------------------------------------------------------------------------------------------------


def test_the_offset_is_removed_where_b10_shows_it_and_what_was_done_is_noted(tmp_path):
    acquisition(tmp_path / "a/0", s2=optical(offset=1000).astype(np.int16))
    patch = only(tmp_path, bands="9")
    np.testing.assert_array_equal(patch.images["s2"], optical()[SENTINEL2.indices("9")])
    assert patch.notes == {"s2_offset": "1000 removed, by B10"}


@pytest.mark.parametrize("where", ["folder", "tags"])
def test_the_processing_baseline_is_read_from_folder_and_tags(tmp_path, where):
    product = "S2A_MSIL1C_20220125T125311_N0400_R052_T24KVE_20220125T160613"
    folder = acquisition(tmp_path / "a" / (product if where == "folder" else "0"))
    tags = {"PRODUCT_ID": product} if where == "tags" else {}
    nine = SENTINEL2.subsets["9"]
    write_tif(folder / "s2.tif", optical(bands=nine, offset=1000), names=nine, tags=tags)
    patch = only(tmp_path, bands="9")
    np.testing.assert_array_equal(patch.images["s2"], optical(bands=nine))
    assert patch.notes == {"s2_offset": "1000 removed, by baseline 04.00"}


def test_without_b10_the_offset_must_be_stated(tmp_path):
    nine = SENTINEL2.subsets["9"]
    folder = acquisition(tmp_path / "a/0")
    write_tif(folder / "s2.tif", optical(bands=nine, offset=1000), names=nine)
    assert "state it with --offset 0 or --offset 1000" in only(tmp_path, bands="9").reason
    stated = only(tmp_path, bands="9", offset="1000")
    np.testing.assert_array_equal(stated.images["s2"], optical(bands=nine))


@pytest.mark.parametrize(
    ("spoiled", "remedy", "option"),
    [
        (radar()[::-1], "--s1-order VH,VV", {"s1_order": "VH,VV"}),
        (10 ** (radar().astype(np.float64) / 10), "--s1-unit linear", {"s1_unit": "linear"}),
    ],
    ids=["swapped", "linear"],
)
def test_swapped_and_linear_radar_is_refused_and_read_once_stated(tmp_path, spoiled, remedy, option):
    acquisition(tmp_path / "a/0", s1=spoiled)
    assert remedy in only(tmp_path).reason
    np.testing.assert_allclose(only(tmp_path, **option).images["s1"], radar(), atol=1e-4)


# --- faults -----------------------------------------------------------------------------------------------------------


def _without(name):
    return lambda folder: (folder / name).unlink()


def _rewrite(name, **options):
    pixels = {"s1.tif": radar(), "s2.tif": optical(), "label.tif": classes()}[name]
    return lambda folder: write_tif(folder / name, options.get("pixels", pixels), **{
        key: value for key, value in options.items() if key != "pixels"})  # fmt: skip


def _truncate(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:1500])


def _as_vrt(folder):
    (folder / "s2.tif").write_text("<VRTDataset rasterXSize='32' rasterYSize='32'></VRTDataset>")


SHIFTED = GRID * GRID.translation(1, 0)
FAULTS = {
    "no label": (_without("label.tif"), "label.tif: missing"),
    "no radar": (_without("s1.tif"), "s1.tif: missing"),
    "truncated": (_truncate("s2.tif"), "s2.tif: not a readable GeoTIFF"),
    "vrt": (_as_vrt, "s2.tif: not a readable GeoTIFF"),
    "radar size": (_rewrite("s1.tif", pixels=radar((32, 31))), "s2 and s1 differ in size: 32x32 and 32x31"),
    "label size": (_rewrite("label.tif", pixels=classes((16, 16))), "s2 and label differ in size"),
    "crs": (_rewrite("s1.tif", crs="EPSG:32634"), "s2 and s1 differ in CRS: EPSG:32633 and EPSG:32634"),
    "transform": (_rewrite("label.tif", transform=SHIFTED), "s2 and label differ in transform"),
    "missing bands": (
        _rewrite("s2.tif", pixels=optical()[:12], names=SENTINEL2.bands[:12]),
        "lacks B12 of the store's bands",
    ),
    "unnamed bands": (_rewrite("s2.tif", pixels=optical()[:12]), "12 unnamed bands"),
    "radar bands": (_rewrite("s1.tif", pixels=radar()[:1]), "s1: 1 unnamed bands, 2 expected"),
    "radar all nan": (_rewrite("s1.tif", pixels=np.full_like(radar(), np.nan)), "s1 has no pixel with data"),
    "optical all nodata": (_rewrite("s2.tif", pixels=np.zeros_like(optical())), "s2 has no pixel with data"),
    "8-bit": (_rewrite("s2.tif", pixels=optical().astype(np.uint8)), "s2 holds 8-bit values, expected DN"),
    "reflectance": (_rewrite("s2.tif", pixels=optical() / np.float32(1e4)), "reflectance, not DN"),
    "label values": (
        _rewrite("label.tif", pixels=classes(among=(1, 11, 42))),
        r"label values \[11, 42\] are outside the scheme 'dynamic-world'",
    ),
    "fractions": (_rewrite("label.tif", pixels=classes() + np.float32(0.5)), "label holds fractions"),
    "label bands": (_rewrite("label.tif", pixels=np.stack([classes()] * 2)), "label.tif: 2 bands, expected 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_acquisition_is_skipped_with_its_reason_and_the_others_are_kept(tmp_path, fault):
    spoil, reason = FAULTS[fault]
    root = geotiff_tree(tmp_path / "tree", locations=1, seasons=3)
    spoil(root / "place0/2020-01")
    found = read_all(GeoTiffTree(path=root))
    assert [type(one) for one in found.values()] == [Patch, Skipped, Patch]
    skipped = found["place0/2020-01"]
    assert re.search(reason, skipped.reason), skipped.reason
    assert "\n" not in skipped.reason


def test_pixels_without_data_in_either_sensor_are_invalid(tmp_path):
    s1, s2 = radar(), optical()
    s1[1, :4] = np.nan
    s2[:, :, :5] = 0
    s2[3, 20:, 20:] = 0  # dark in one band is data
    acquisition(tmp_path / "a/0", s1=s1, s2=s2)
    expected = np.ones((32, 32), bool)
    expected[:4] = expected[:, :5] = False
    np.testing.assert_array_equal(only(tmp_path).valid, expected)


def test_sensors_that_share_no_pixel_with_data_are_skipped(tmp_path):
    s1, s2 = radar(), optical()
    s1[:, :16], s2[:, 16:] = np.nan, 0
    acquisition(tmp_path / "a/0", s1=s1, s2=s2)
    assert only(tmp_path).reason == "no pixel has data in both Sentinel-1 and Sentinel-2"


def test_nodata_of_a_label_is_unlabelled_unless_it_is_a_class(tmp_path):
    labels = classes(among=(0, 3)).astype(np.int16)
    labels[0] = -5
    acquisition(tmp_path / "a/0", label=labels, nodata=-5)
    found = only(tmp_path).label
    assert (found[0] == IGNORE).all()
    np.testing.assert_array_equal(found[1:], labels[1:])
    acquisition(tmp_path / "a/0", label=labels.clip(0), nodata=0)
    np.testing.assert_array_equal(only(tmp_path).label, labels.clip(0))


def test_float_labels_are_class_numbers_and_their_nan_is_unlabelled(tmp_path):
    labels = classes().astype(np.float32)
    labels[0, 0] = np.nan
    acquisition(tmp_path / "a/0", label=labels)
    found = only(tmp_path).label
    assert found[0, 0] == IGNORE
    np.testing.assert_array_equal(found.ravel()[1:], labels.ravel()[1:])


@pytest.mark.parametrize("other", [{"size": (16, 16)}, {"shifted": True}], ids=["size", "grid"])
def test_acquisitions_of_a_location_must_share_its_grid(tmp_path, other):
    acquisition(tmp_path / "a/0")
    folder = acquisition(tmp_path / "a/1", other.get("size", (32, 32)))
    if "shifted" in other:
        far = GRID * GRID.translation(40, 0)
        for name, pixels in (("s1", radar()), ("s2", optical()), ("label", classes())):
            write_tif(folder / f"{name}.tif", pixels, transform=far)
    first, second = read_all(GeoTiffTree(path=tmp_path)).values()
    assert isinstance(first, Patch)
    assert "the location's first acquisition" in second.reason


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda root: shutil.rmtree(root / "s1/0000000"), "no Sentinel-1"),
        (lambda root: shutil.rmtree(next((root / "s1/0000000").iterdir())), "seasons do not pair: 1 of Sentinel-1, 2"),
        (lambda root: next((root / "s2c/0000000").glob("*/B9.tif")).unlink(), "B9.tif: missing"),
        (lambda root: next((root / "dw_noisy_labels/0000000").glob("*/label.tif")).unlink(), "label.tif: missing"),
        (
            lambda root: write_tif(next((root / "s2c/0000000").glob("*/B9.tif")), optical((5, 5), bands=["B9"])),
            "B9.tif: 5x5 pixels, beside 24x24 at the finest resolution",
        ),
        (
            lambda root: (root / "dw_complete_ids.csv").write_text("0,20300101T000000_T32UPU\n1\n"),
            "the csv names seasons that s2c/ lacks: 20300101T000000_T32UPU",
        ),
    ],
    ids=["no s1", "a season short", "a band short", "no label", "band size", "csv"],
)
def test_faults_of_an_ssl4eo_tree_are_skipped_with_their_reason(tmp_path, spoil, reason):
    root = ssl4eo_tree(tmp_path / "tree", seasons=2)
    spoil(root)
    found = read_all(Ssl4eo(path=root))
    skipped = [one for one in found.values() if isinstance(one, Skipped)]
    assert len(skipped) == 1
    assert reason in skipped[0].reason
    assert all(f"0000001/2020{month:02d}20T100000_T32UPU" in found for month in (1, 4))


def test_settings_that_make_no_sense_are_errors_that_finish_the_sentence(tmp_path):
    for wrong, message in (
        ({"bands": "B99"}, "no band 'B99'"),
        ({"scheme": "dynamic"}, "did you mean 'dynamic-world'"),
        ({"label": "../label.tif"}, "must be a file name"),
        ({"offset": "500"}, "offset=500: unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            validate(GeoTiffTree, {"path": str(tmp_path)}, wrong)


# --- real samples -----------------------------------------------------------------------------------------------------


@needs_real
def test_every_real_sample_is_read_and_its_offset_decided():
    found = read_all(GeoTiffTree(path=PAIRS, bands="9", offset="0"))
    assert all(isinstance(one, Patch) for one in found.values()), found
    with_offset = {name for name, patch in found.items() if "1000 removed" in patch.notes["s2_offset"]}
    assert with_offset == {"terramesh-282D_485L_3_3/0", "terramesh-609U_541L_3_0/0"}
    assert {patch.size for patch in found.values()} == {(100, 100), (224, 224), (256, 256), (512, 512)}
    for name, patch in found.items():
        np.testing.assert_array_equal(patch.images["s1"], pixels_of(PAIRS / name / "s1.tif"))
        np.testing.assert_array_equal(patch.label, pixels_of(PAIRS / name / "label.tif")[0])
        lowest = np.percentile(patch.images["s2"][0], 1)  # the blue band over land without the offset
        assert lowest < 1500 or "609U" in name or "cloudy" in name
    assert len([name for name in found if name.startswith("worldcereal")]) == 4


@needs_real
def test_real_locations_that_lack_a_band_are_named():
    found = read_all(GeoTiffTree(path=PAIRS))
    skipped = {name: one.reason for name, one in found.items() if isinstance(one, Skipped)}
    assert {name.split("/")[0] for name in skipped} == {"worldcereal-wc_belgium_100"}
    assert set(skipped.values()) == {"lacks B1, B8A, B9, B10 of the store's bands; --bands names the bands to keep"}


@needs_real
@pytest.mark.parametrize(("scheme", "places"), [("terramesh", "terramesh-*"), ("water", "sen1floods11-*")])
def test_real_reference_maps_are_read_by_their_scheme(scheme, places):
    source = GeoTiffTree(path=PAIRS, label="reference.tif", scheme=scheme)
    for location in source.locations():
        if Path(location.id).match(places):
            (patch,) = source.read(location)
            assert isinstance(patch, Patch), patch
            assert set(np.unique(patch.label)) <= {*range(8), IGNORE}


@needs_real
def test_a_real_ssl4eo_location_is_read_beside_a_made_up_radar(tmp_path):
    root = tmp_path / "tree"
    shutil.copytree(REAL_SSL4EO, root)
    product = next((root / "s2c/0000000").iterdir())
    with rasterio.open(product / "B2.tif") as file:
        crs, transform = file.crs, file.transform
    for index, band in enumerate(SENTINEL1.bands):
        write_tif(root / f"s1/0000000/S1A/{band}.tif", radar((264, 264))[index], crs=crs, transform=transform)
    (patch,) = read_all(Ssl4eo(path=root)).values()
    assert patch.notes["s2_offset"] == "none, by baseline 02.06"
    np.testing.assert_array_equal(patch.images["s2"][1], pixels_of(product / "B2.tif")[0])
    assert (round(patch.lon, 1), round(patch.lat, 1)) == (-39.7, -18.2)
    assert patch.images["s2"].shape == (13, 264, 264)


@needs_real
def test_the_real_ssl4eo_location_without_radar_is_named():
    assert read_all(Ssl4eo(path=REAL_SSL4EO)) == {
        "0000000": Skipped("0000000", "no Sentinel-1: its folder below s1/ is missing")
    }


def test_ssl4eo_seasons_of_two_satellites_pair_by_date_not_by_name(tmp_path):
    """S1A sorts before S1B: by name the October image of S1A would meet the label of April."""
    root = ssl4eo_tree(tmp_path / "tree", ids=1, seasons=2)
    first, second = sorted((root / "s1/0000000").iterdir())
    first.rename(first.with_name("S1B_IW_GRDH_1SDV_20200203T060000_20200203T060025"))
    second.rename(second.with_name("S1A_IW_GRDH_1SDV_20200503T060000_20200503T060025"))
    found = list(read_all(Ssl4eo(path=root)).values())
    for season, patch in enumerate(found):
        np.testing.assert_array_equal(patch.images["s1"], radar((24, 24), season))
