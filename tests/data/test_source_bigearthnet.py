"""BigEarthNet: bands by name, VH,VV stacks turned round, L2A only when asked for, no offset without evidence."""

import pickle
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rasterio.transform import Affine
from trees import GRID, optical, radar, write_tif

from cromss.data.ingestion import ingest
from cromss.data.patch import Patch
from cromss.data.sources.base import Skipped
from cromss.data.sources.bigearthnet import BigEarthNet
from cromss.data.store import PatchStore
from cromss.landcover import BIGEARTHNET, CORINE, IGNORE
from cromss.sensors import SENTINEL2
from cromss.settings import validate

SIDE = 24
L2A = SENTINEL2.subsets["12"]
CODES = (111, 112, 122, 243, 311, 321, 512, 523, 999)
PLACE = "33UUP_26_57"
ROWS = (  # S2 patch, S1 patch, split; the second and the third are one place at two dates, the later one first
    ("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57", "S1B_IW_GRDH_1SDV_20170612T165809_33UUP_26_57", "train"),
    ("S2B_MSIL2A_20180421T100029_N9999_R122_T33TWN_50_83", "S1A_IW_GRDH_1SDV_20180421T050000_33TWN_49_80", "test"),
    ("S2A_MSIL2A_20170701T093031_N9999_R136_T33TWN_50_83", "S1B_IW_GRDH_1SDV_20170702T050000_33TWN_49_80", "test"),
    ("S2A_MSIL2A_20170818T103021_N9999_R108_T33UUP_03_07", "S1A_IW_GRDH_1SDV_20170818T165000_33UUP_02_06", "validation"),
)  # fmt: skip


def reference(seed: int) -> np.ndarray:
    """CORINE codes, uint16."""
    return np.random.default_rng([4, seed]).choice(np.array(CODES, np.uint16), (SIDE, SIDE))


def native(band: str) -> int:
    """Pixels a side: 60 m bands a sixth, 20 m bands half of the 10 m bands."""
    return SIDE // {"B1": 6, "B9": 6, "B2": 1, "B3": 1, "B4": 1, "B8": 1}.get(band, 2)


def band_pixels(band: str, seed: int, offset=0) -> np.ndarray:
    """DN (H, W) at native size, other ones for every band."""
    shape = (native(band), native(band))
    return optical(shape, 100 * seed + SENTINEL2.bands.index(band), offset, [band])[0]


def file_of(root: Path, kind: str, patch: str, suffix: str = "") -> Path:
    """As published: kind / product / patch / file."""
    product = patch.rsplit("_", 3 if kind == "BigEarthNet-S1" else 2)[0]
    return root / kind / product / patch / f"{patch}{suffix}.tif"


def metadata(root: Path, rows=ROWS) -> None:
    names, radars, splits = zip(*rows, strict=True)
    columns = {"patch_id": names, "labels": [["Pastures"]] * len(rows), "split": splits, "country": ["Austria"] * len(rows),
               "s1_name": radars, "contains_seasonal_snow": [False] * len(rows)}  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), root / "metadata.parquet")


def tree(root: Path, rows=ROWS, *, s1="bands", s2="bands", offset=0) -> Path:
    """The published tree; `stacked` puts the bands of a sensor into one file without names, Sentinel-1 as VH, VV."""
    metadata(root, rows)
    for seed, (patch, radar_patch, _) in enumerate(rows):
        backscatter = radar((SIDE, SIDE), seed)
        if s1 == "stacked":
            write_tif(file_of(root, "BigEarthNet-S1", radar_patch), backscatter[::-1])
        else:
            for band, pixels in zip(("VV", "VH"), backscatter, strict=True):
                write_tif(file_of(root, "BigEarthNet-S1", radar_patch, f"_{band}"), pixels)
        if s2 == "stacked":
            write_tif(file_of(root, "BigEarthNet-S2", patch), optical((SIDE, SIDE), seed, offset, L2A))
        else:
            for band in L2A:
                pixels = band_pixels(band, seed, offset)
                name = f"_B{band[1:]:0>2}"
                grid = GRID * Affine.scale(SIDE / native(band))
                write_tif(file_of(root, "BigEarthNet-S2", patch, name), pixels, transform=grid)
        write_tif(file_of(root, "Reference_Maps", patch, "_reference_map"), reference(seed))
    return root


def read_all(path: Path, **options) -> dict[str, Patch | Skipped]:
    source = BigEarthNet(path=path, **{"level": "L2A-as-is", **options})
    found = [one for location in source.locations() for one in source.read(location)]
    return {one.patch_id if isinstance(one, Patch) else one.name: one for one in found}


def only(path: Path, **options) -> Patch | Skipped:
    (found,) = read_all(path, **options).values()
    return found


# --- what is in the files is in the patches ---------------------------------------------------------------------------


def test_the_published_tree_is_read_band_by_band_and_dates_of_a_place_are_one_location(tmp_path):
    found = read_all(tree(tmp_path))
    assert [(name, one.split) for name, one in found.items()] == [
        ("33TWN_50_83/S2A_MSIL2A_20170701T093031_N9999_R136", "test"),
        ("33TWN_50_83/S2B_MSIL2A_20180421T100029_N9999_R122", "test"),
        ("33UUP_03_07/S2A_MSIL2A_20170818T103021_N9999_R108", "validation"),
        ("33UUP_26_57/S2A_MSIL2A_20170613T101031_N9999_R022", "train"),
    ]
    for patch, seed in zip(found.values(), (2, 1, 3, 0), strict=True):
        np.testing.assert_array_equal(patch.images["s1"], radar((SIDE, SIDE), seed))
        np.testing.assert_array_equal(patch.label, BIGEARTHNET.read(reference(seed)))
        for band, pixels in zip(L2A, patch.images["s2"], strict=True):
            stored = band_pixels(band, seed)
            if native(band) == SIDE:
                np.testing.assert_array_equal(pixels, stored)
            else:  # bilinear weights are positive: a coarse band keeps its range, and its own identity
                assert stored.min() <= pixels.min() <= pixels.max() <= stored.max()
                by = SIDE // native(band)
                centres = pixels.reshape(native(band), by, native(band), by).mean((1, 3))
                assert np.corrcoef(centres.ravel(), stored.ravel())[0, 1] > 0.8, band
        assert patch.notes == {"s2_level": "L2A", "s2_offset": "none, by dark pixels"}
        assert (patch.crs, patch.valid) == ("EPSG:32633", None)


@pytest.mark.parametrize("where", ["in its folder", "in the product's folder", "beside each other"])
def test_a_stack_without_names_in_vh_vv_order_comes_out_as_vv_vh(tmp_path, where):
    root = tree(tmp_path, ROWS[:1], s1="stacked")
    file = file_of(root, "BigEarthNet-S1", ROWS[0][1])
    if where != "in its folder":
        up = file.parents[1 if where == "in the product's folder" else 2]
        file = file.rename(up / file.name)
    np.testing.assert_array_equal(only(root).images["s1"], radar((SIDE, SIDE), 0))


def test_a_stack_without_names_in_vv_vh_order_is_refused_until_that_is_said(tmp_path):
    root = tree(tmp_path, ROWS[:1], s1="stacked")
    write_tif(file_of(root, "BigEarthNet-S1", ROWS[0][1]), radar((SIDE, SIDE), 0))
    assert "state it with --s1-order VV,VH" in only(root).reason
    np.testing.assert_array_equal(only(root, s1_order="VV,VH").images["s1"], radar((SIDE, SIDE), 0))


def test_a_stack_that_names_its_bands_is_read_by_the_names(tmp_path):
    root = tree(tmp_path, ROWS[:1], s1="stacked")
    write_tif(file_of(root, "BigEarthNet-S1", ROWS[0][1]), radar((SIDE, SIDE), 0), names=["VV", "VH"])
    np.testing.assert_array_equal(only(root).images["s1"], radar((SIDE, SIDE), 0))


def test_a_linear_stack_is_turned_round_too(tmp_path):
    root = tree(tmp_path, ROWS[:1], s1="stacked")
    power = 10 ** (radar((SIDE, SIDE), 0)[::-1].astype(np.float64) / 10)
    write_tif(file_of(root, "BigEarthNet-S1", ROWS[0][1]), power)
    assert "--s1-unit linear" in only(root).reason
    np.testing.assert_allclose(only(root, s1_unit="linear").images["s1"], radar((SIDE, SIDE), 0), atol=1e-4)
    write_tif(file_of(root, "BigEarthNet-S1", ROWS[0][1]), power[::-1])
    assert "--s1-order VV,VH" in only(root, s1_unit="linear").reason


@pytest.mark.parametrize("order", ["VV,VH", "VH,VV"])
def test_a_stated_order_does_not_rename_files_that_name_their_band(tmp_path, order):
    root = tree(tmp_path, ROWS[:1])
    np.testing.assert_array_equal(only(root, s1_order=order).images["s1"], radar((SIDE, SIDE), 0))
    reversed_order = ",".join(reversed(L2A))
    np.testing.assert_array_equal(only(root, s2_order=reversed_order).images["s2"], only(root).images["s2"])


def test_stacked_sentinel2_without_names_needs_its_order(tmp_path):
    root = tree(tmp_path, ROWS[:1], s2="stacked")
    assert "12 unnamed bands" in only(root).reason
    assert "--s2-order" in only(root).reason
    patch = only(root, s2_order=",".join(L2A), bands="B8A,B12")
    np.testing.assert_array_equal(patch.images["s2"], optical((SIDE, SIDE), 0, 0, L2A)[[8, 11]])


def test_patches_without_the_folder_of_their_product_are_found(tmp_path):
    root = tree(tmp_path, ROWS[:1])
    for kind, name in (("BigEarthNet-S1", ROWS[0][1]), ("BigEarthNet-S2", ROWS[0][0])):
        folder = file_of(root, kind, name).parent
        folder.rename(root / kind / name)
    np.testing.assert_array_equal(only(root).images["s1"], radar((SIDE, SIDE), 0))


def test_only_the_bands_that_are_kept_have_to_be_there(tmp_path):
    root = tree(tmp_path, ROWS[:1])
    for band in ("B01", "B09", "B8A"):
        file_of(root, "BigEarthNet-S2", ROWS[0][0], f"_{band}").unlink()
    assert only(root, bands="9").images["s2"].shape == (9, SIDE, SIDE)
    assert only(root).reason == f"{ROWS[0][0]}_B01.tif: missing"


def test_a_pixel_that_is_dark_in_the_kept_bands_alone_is_no_gap(tmp_path):
    root = tree(tmp_path, ROWS[:1])
    for band in ("B02", "B03", "B04"):
        pixels = band_pixels(band.replace("0", ""), 0)
        pixels[:4] = 0
        write_tif(file_of(root, "BigEarthNet-S2", ROWS[0][0], f"_{band}"), pixels)
    assert only(root, bands="B4,B3,B2").valid is None


def test_coarse_bands_are_interpolated_between_pixel_centres(tmp_path):
    root = tree(tmp_path, ROWS[:1])
    ramp = np.tile(np.arange(12, dtype=np.uint16) * 100 + 200, (12, 1))  # 200 DN in the middle of the first 20 m pixel
    file = file_of(root, "BigEarthNet-S2", ROWS[0][0], "_B05")
    write_tif(file, ramp, transform=GRID * Affine.scale(2))
    (fine,) = only(root, bands="B5,B2").images["s2"][:1]
    np.testing.assert_array_equal(fine[5, 1:-1], 225 + 50 * np.arange(22))  # a quarter of a pixel from each centre


# --- labels -----------------------------------------------------------------------------------------------------------


def test_corine_codes_become_the_19_classes_and_what_they_leave_out_is_unlabelled():
    codes = np.array([[111, 112, 122, 211, 213, 241], [333, 321, 512, 521, 523, 999]])
    names = ["urban fabric", "urban fabric", None, "arable land", "arable land", "permanent crops",
             "natural grassland and sparsely vegetated areas", "natural grassland and sparsely vegetated areas",
             "inland waters", "marine waters", "marine waters", None]  # fmt: skip
    expected = [IGNORE if name is None else BIGEARTHNET.classes.index(name) for name in names]
    assert BIGEARTHNET.read(codes).ravel().tolist() == expected
    assert (len(BIGEARTHNET), len(CORINE)) == (19, 44)


def test_the_19_classes_are_those_of_the_metadata_in_its_order():
    # first words of the nomenclature as published, in its order
    assert [name.split()[0].rstrip("s") for name in BIGEARTHNET.classes] == [
        "urban", "industrial", "arable", "permanent", "pasture", "complex", "agriculture", "agro-forestry",
        "broad-leaved", "coniferou", "mixed", "natural", "heathland", "transitional", "beache", "inland", "coastal",
        "inland", "marine",
    ]  # fmt: skip
    assert set(CORINE.codes) - set(BIGEARTHNET.codes) == {122, 123, 124, 131, 132, 133, 141, 142, 332, 334, 335, 423}


def test_all_44_classes_are_there_for_who_wants_them(tmp_path):
    root = tree(tmp_path, ROWS[:1])
    np.testing.assert_array_equal(only(root, scheme="corine").label, CORINE.read(reference(0)))


# --- level and offset -------------------------------------------------------------------------------------------------


def test_l2a_is_refused_until_it_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="L2A .*state that you want it with --level L2A-as-is"):
        read_all(tree(tmp_path, ROWS[:1]), level="L1C")


def test_an_l1c_copy_needs_no_leave(tmp_path):
    rows = [(ROWS[0][0].replace("MSIL2A", "MSIL1C").replace("N9999", "N0205"), *ROWS[0][1:])]
    patch = only(tree(tmp_path, rows), level="L1C")
    assert patch.notes == {"s2_level": "L1C", "s2_offset": "none, by baseline 02.05"}


@pytest.mark.parametrize(
    ("baseline", "offset", "note"),
    [("N0204", 0, "none, by baseline 02.04"), ("N0500", 1000, "1000 removed, by baseline 05.00")],
)
def test_a_baseline_in_the_name_decides_about_the_offset(tmp_path, baseline, offset, note):
    rows = [(ROWS[0][0].replace("N9999", baseline), *ROWS[0][1:])]
    patch = only(tree(tmp_path, rows, offset=offset))
    np.testing.assert_array_equal(patch.images["s2"][1], band_pixels("B2", 0))
    assert patch.notes["s2_offset"] == note


def test_n9999_is_no_baseline_and_bright_pixels_are_no_proof(tmp_path):
    root = tree(tmp_path, ROWS[:1], offset=1000)
    assert "state it with --offset 0 or --offset 1000" in only(root).reason
    patch = only(root, offset="1000")
    np.testing.assert_array_equal(patch.images["s2"][1], band_pixels("B2", 0))
    assert patch.notes["s2_offset"] == "1000 removed, stated"


# --- faults -----------------------------------------------------------------------------------------------------------


def _truncate(file: Path):
    file.write_bytes(file.read_bytes()[:600])


FAULTS = {
    "no radar band": (lambda root, s2, s1: file_of(root, "BigEarthNet-S1", s1, "_VH").unlink(), "_VH.tif: missing"),
    "no map": (
        lambda root, s2, s1: file_of(root, "Reference_Maps", s2, "_reference_map").unlink(),
        "_reference_map.tif: missing",
    ),
    "truncated": (
        lambda root, s2, s1: _truncate(file_of(root, "BigEarthNet-S2", s2, "_B04")),
        r"_B04.tif: (not a readable GeoTIFF|damaged or truncated)",
    ),
    "two bands in one": (
        lambda root, s2, s1: write_tif(file_of(root, "BigEarthNet-S2", s2, "_B02"), optical((SIDE, SIDE))[:2]),
        "_B02.tif: 2 bands, expected 1",
    ),
    "odd size": (
        lambda root, s2, s1: write_tif(file_of(root, "BigEarthNet-S2", s2, "_B09"), optical((5, 5), bands=["B9"])),
        "_B09.tif: 5x5 pixels, beside 24x24",
    ),
    "a band elsewhere": (
        lambda root, s2, s1: write_tif(
            file_of(root, "BigEarthNet-S2", s2, "_B03"), optical((SIDE, SIDE))[:1], transform=GRID * Affine.translation(9, 0)
        ),
        "B03.tif differ in transform",
    ),
    "a band of floats": (
        lambda root, s2, s1: write_tif(
            file_of(root, "BigEarthNet-S2", s2, "_B03"), optical((SIDE, SIDE))[:1].astype(np.float32)
        ),
        "differ in pixel type: uint16 and float32",
    ),
    "unknown code": (
        lambda root, s2, s1: write_tif(
            file_of(root, "Reference_Maps", s2, "_reference_map"), np.full((SIDE, SIDE), 524, np.uint16)
        ),
        r"label values \[524\] are outside the scheme 'bigearthnet'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_patch_is_skipped_with_its_reason_and_the_others_are_kept(tmp_path, fault):
    spoil, reason = FAULTS[fault]
    root = tree(tmp_path, ROWS[1:3])
    spoil(root, *ROWS[2][:2])
    skipped, kept = read_all(root).values()
    assert isinstance(kept, Patch)
    assert re.search(reason, skipped.reason), skipped.reason


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "", "a/b"])
@pytest.mark.parametrize("column", [0, 1])
def test_a_name_in_the_metadata_cannot_lead_elsewhere(tmp_path, name, column):
    root = tree(tmp_path, ROWS[:1])
    row = list(ROWS[0])
    row[column] = name
    metadata(root, [row, ROWS[3]])
    reasons = [one.reason for one in read_all(root).values()]
    assert f"the metadata name {name!r}, which is no patch" in reasons


def test_a_place_in_two_splits_or_paired_twice_is_skipped(tmp_path):
    root = tree(tmp_path, ROWS[1:3])
    metadata(root, [ROWS[1], (*ROWS[2][:2], "train")])
    assert read_all(root)["33TWN_50_83"].reason == "the metadata put it into test and train"
    metadata(root, [ROWS[1], (ROWS[1][0], ROWS[2][1], "test")])
    assert "with several of Sentinel-1" in read_all(root)["33TWN_50_83"].reason
    metadata(root, [(*ROWS[1][:2], None)])
    assert read_all(root)["33TWN_50_83"].reason == "the metadata put it into no split"


@pytest.mark.parametrize("content", [None, b"no parquet", "columns"], ids=["missing", "broken", "columns"])
def test_metadata_that_cannot_be_read_is_an_error_naming_the_file(tmp_path, content):
    if content == "columns":
        pq.write_table(pa.table({"patch_id": ["a"]}), tmp_path / "metadata.parquet")
    elif content:
        (tmp_path / "metadata.parquet").write_bytes(content)
    with pytest.raises(ValueError, match="metadata.parquet: (missing|is no parquet)"):
        BigEarthNet(path=tmp_path).locations()


def test_settings_are_checked_by_name():
    with pytest.raises(ValueError, match="level=L2A: unknown.*L2A-as-is"):
        validate(BigEarthNet, {"path": "x", "level": "L2A"})


# --- end to end -------------------------------------------------------------------------------------------------------


def test_locations_travel_to_other_processes(tmp_path):
    locations = BigEarthNet(path=tree(tmp_path), level="L2A-as-is").locations()
    assert pickle.loads(pickle.dumps(locations)) == locations  # noqa: S301 - our own


def test_what_is_ingested_reads_back_equal(tmp_path):
    root = tree(tmp_path / "tree")
    summary = ingest(BigEarthNet(path=root, level="L2A-as-is"), tmp_path / "store")
    assert (summary.patches, summary.skipped) == (4, [])
    store = PatchStore.open(tmp_path / "store")
    found = read_all(root)
    assert store.encoding == "raw"
    assert store.manifest.places == {"test": 1, "train": 1, "validation": 1}
    for patch in store.sample(4):
        np.testing.assert_array_equal(patch.images["s1"], found[patch.patch_id].images["s1"])
        np.testing.assert_array_equal(patch.images["s2"], found[patch.patch_id].images["s2"])
        np.testing.assert_array_equal(patch.label, found[patch.patch_id].label)
        assert patch.notes["s2_level"] == "L2A"
