"""DFC2020 in every copy that is about: one patch is one patch, and nobody's test set becomes training data."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rasterio.transform import Affine
from trees import classes, dfc2020_tree, optical, radar, write_tif

from cromss.data.ingestion import ingest
from cromss.data.patch import Patch
from cromss.data.sources.base import Skipped
from cromss.data.sources.dfc2020 import Dfc2020
from cromss.data.store import PatchStore
from cromss.landcover import DFC2020

SIZE = (24, 24)
AMONG = (1, 2, 4, 5, 6, 7, 9, 10)
CITIES = {"winter": "MexicoCity", "autumn": "Mumbai", "spring": "BlackForest"}
SPLITS = {"train": (609, 2), "val": (11,), "test": (7,)}  # numbers of the contest's test set


def pixels(seed: int) -> dict[str, np.ndarray]:
    return {
        "s1": radar(SIZE, seed).astype(np.float64),
        "s2": optical(SIZE, seed),
        "dfc": classes(SIZE, seed, among=AMONG),
    }


def contest(root: Path, *, nested=()) -> Path:
    """The six zips of IEEE DataPort, unpacked beside each other; those in `nested` wrap their files in a folder."""
    for part, ending, numbers in (("validation", "validation", (0, 1)), ("test", "0", (0,))):
        for number in numbers:
            for what, values in pixels(number + 50 * (part == "test")).items():
                zipped = f"{what}_{ending}"
                folder = root / zipped / (zipped if zipped in nested else "")
                write_tif(folder / f"ROIs0000_{part}_{what}_0_p{number}.tif", values)
    return root


def copernicus_bench(root: Path) -> Path:
    """`dfc2020.zip` of Copernicus-Bench, as torchgeo reads it: files that say EPSG:4326, but not where in it."""
    base = root / "dfc2020_s1s2"
    nowhere = {"crs": "EPSG:4326", "transform": Affine.identity()}
    for split, numbers in SPLITS.items():
        for number in numbers:
            for what, values in pixels(number).items():
                write_tif(base / what / f"ROIs0000_test_{what}_0_p{number}.tif", values, **nowhere)
        names = [f"ROIs0000_test_dfc_0_p{number}.tif\n" for number in numbers]
        (base / f"dfc-{split}-new.csv").write_text("".join(names))
    return root


def public_bundle(root: Path) -> Path:
    """`DFC_Public_Dataset.zip` of IEEE DataPort: by season and city, with the MODIS labels beside."""
    for seed, (season, city) in enumerate(CITIES.items()):
        for what, values in {**pixels(seed), "lc": np.stack([classes(SIZE, among=(12,))] * 4)}.items():
            name = f"ROIs0000_{season}_{what}_{city}_p{40 + seed}.tif"
            write_tif(root / "DFC_Public_Dataset" / f"ROIs0000_{season}" / f"{what}_{city}" / name, values)
    return root


def read_all(source) -> dict[str, Patch | Skipped]:
    found = [one for location in source.locations() for one in source.read(location)]
    return {one.patch_id if isinstance(one, Patch) else one.name: one for one in found}


def equal(patch: Patch, seed: int) -> bool:
    expected = pixels(seed)
    images = all(np.array_equal(patch.images[name], expected[name]) for name in ("s1", "s2"))
    return images and np.array_equal(patch.label, DFC2020.read(expected["dfc"]))


# --- the contest ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [(), ("s1_validation", "dfc_0"), ("s2_validation", "s1_0", "dfc_validation")])
def test_the_contests_zips_are_read_whether_or_not_they_wrap_a_folder(tmp_path, nested):
    found = read_all(Dfc2020(path=contest(tmp_path, nested=nested)))
    assert {name: patch.split for name, patch in found.items()} == {
        "test_0_p0/0": "test", "validation_0_p0/0": "train", "validation_0_p1/0": "train",
    }  # fmt: skip
    assert equal(found["test_0_p0/0"], 50)
    assert equal(found["validation_0_p0/0"], 0)
    assert equal(found["validation_0_p1/0"], 1)


def test_folders_of_other_names_are_read_by_the_names_of_their_files(tmp_path):
    for what, folder in (("s1", "a/SAR"), ("s2", "validation_image"), ("dfc", "validation_HR")):
        write_tif(tmp_path / folder / f"ROIs0000_validation_{what}_0_p3.TIF", pixels(3)[what])
    (patch,) = read_all(Dfc2020(path=tmp_path)).values()
    assert equal(patch, 3)


def test_a_complete_copy_has_986_and_5128_patches_in_a_fixed_order(tmp_path):
    """Names alone: locations decode nothing."""
    for part, ending, count in (("validation", "validation", 986), ("test", "0", 5128)):
        folder = tmp_path / f"ROIs0000_{part}" / f"s2_{ending}"
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"ROIs0000_{part}_s2_0_p{number}.tif").touch()
    locations = Dfc2020(path=tmp_path).locations()
    assert Counter(location.split for location in locations) == {"train": 986, "test": 5128}
    assert len({location.id for location in locations}) == 986 + 5128
    assert [location.id for location in locations][:12] == [f"test_0_p{number}" for number in range(12)]
    assert locations == Dfc2020(path=tmp_path).locations()


def test_a_zip_unpacked_twice_gives_every_patch_once(tmp_path):
    root = contest(tmp_path / "copy")
    shutil.copytree(root / "s2_validation", tmp_path / "copy (1)/s2_validation")
    shutil.copytree(root / "dfc_validation", root / "dfc_validation/dfc_validation")
    found = read_all(Dfc2020(path=tmp_path))
    assert len(found) == 3
    assert equal(found["validation_0_p1/0"], 1)


@pytest.mark.parametrize("what", ["s1", "s2", "dfc"])
def test_two_files_of_one_name_that_differ_are_both_named(tmp_path, what):
    root = contest(tmp_path / "copy")
    name = f"ROIs0000_validation_{what}_0_p1.tif"
    shutil.copytree(root, tmp_path / "copy2")
    write_tif(tmp_path / f"copy2/{what}_validation" / name, pixels(9)[what])
    found = read_all(Dfc2020(path=tmp_path))
    reason = found.pop("validation_0_p1/0").reason
    assert reason == (
        f"two files of one name differ: {tmp_path}/copy/{what}_validation/{name} and "
        f"{tmp_path}/copy2/{what}_validation/{name}; remove one"
    )
    assert all(isinstance(one, Patch) for one in found.values())


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
)
def test_a_label_may_have_any_integer_type_or_be_written_as_floats(tmp_path, dtype):
    root = contest(tmp_path)
    write_tif(root / "dfc_0/ROIs0000_test_dfc_0_p0.tif", pixels(50)["dfc"].astype(dtype))
    assert equal(read_all(Dfc2020(path=root))["test_0_p0/0"], 50)


def test_of_a_label_of_several_bands_the_first_is_read(tmp_path):
    root = contest(tmp_path)
    label = pixels(50)["dfc"]
    write_tif(root / "dfc_0/ROIs0000_test_dfc_0_p0.tif", np.stack([label, np.full_like(label, 99)]))
    assert equal(read_all(Dfc2020(path=root))["test_0_p0/0"], 50)


FAULTS = {
    "no radar": (lambda root: (root / "s1_0/ROIs0000_test_s1_0_p0.tif").unlink(), "ROIs0000_test_s1_0_p0.tif: missing"),
    "no optical": (lambda root: shutil.rmtree(root / "s2_0"), "ROIs0000_test_s2_0_p0.tif: missing"),
    "no label": (lambda root: shutil.rmtree(root / "dfc_0"), "ROIs0000_test_dfc_0_p0.tif: missing"),
    "truncated": (
        lambda root: (root / "s2_0/ROIs0000_test_s2_0_p0.tif").write_bytes(b"II*\0" + bytes(40)),
        "s2_0_p0.tif: not a readable GeoTIFF",
    ),
    "vrt": (
        lambda root: (root / "dfc_0/ROIs0000_test_dfc_0_p0.tif").write_text("<VRTDataset></VRTDataset>"),
        "dfc_0_p0.tif: not a readable GeoTIFF",
    ),
    "radar bands": (
        lambda root: write_tif(root / "s1_0/ROIs0000_test_s1_0_p0.tif", radar(SIZE)[:1]),
        "s1_0_p0.tif: 1 bands, expected 2",
    ),
    "raw IGBP": (
        lambda root: write_tif(root / "dfc_0/ROIs0000_test_dfc_0_p0.tif", classes(SIZE, among=(9, 14, 17))),
        "label values [14, 17] are outside the scheme 'dfc2020'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_patch_is_skipped_with_its_reason_and_the_others_are_kept(tmp_path, fault):
    spoil, reason = FAULTS[fault]
    root = contest(tmp_path)
    spoil(root)
    found = read_all(Dfc2020(path=root))
    assert [type(one) for one in found.values()] == [Skipped, Patch, Patch]
    assert reason in found["test_0_p0/0"].reason


# --- Copernicus-Bench, torchgeo ---------------------------------------------------------------------------------------


def test_copernicus_bench_divides_the_contests_test_set_by_its_csv_files(tmp_path):
    found = read_all(Dfc2020(path=copernicus_bench(tmp_path)))
    assert {name: patch.split for name, patch in found.items()} == {
        "test_0_p2/0": "train", "test_0_p7/0": "test", "test_0_p11/0": "val", "test_0_p609/0": "train",
    }  # fmt: skip
    assert all(equal(found[f"test_0_p{number}/0"], number) for numbers in SPLITS.values() for number in numbers)


def test_stated_the_contests_own_division_holds(tmp_path):
    locations = Dfc2020(path=copernicus_bench(tmp_path), partition="contest").locations()
    assert {location.split for location in locations} == {"test"}


def test_files_without_a_place_on_earth_claim_none(tmp_path):
    """Their EPSG:4326 with an identity transform would put every patch on one spot, north of the pole."""
    patch = read_all(Dfc2020(path=copernicus_bench(tmp_path)))["test_0_p2/0"]
    assert patch.crs == ""
    assert np.isnan([patch.lon, patch.lat]).all()


def test_patches_that_its_csv_files_do_not_name_or_that_are_not_there_are_skipped_by_name(tmp_path):
    root = copernicus_bench(tmp_path)
    contest(tmp_path / "contest")
    with (root / "dfc2020_s1s2/dfc-val-new.csv").open("a") as table:
        table.write("ROIs0000_test_dfc_0_p5000.tif\n")
    found = read_all(Dfc2020(path=root))
    skipped = {name: one.reason for name, one in found.items() if isinstance(one, Skipped)}
    unnamed = "named by none of dfc-train-new.csv, dfc-val-new.csv, dfc-test-new.csv"
    assert skipped == {
        "test_0_p0": unnamed, "validation_0_p0": unnamed, "validation_0_p1": unnamed,
        "test_0_p5000/0": "ROIs0000_test_s1_0_p5000.tif: missing",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda base: (base / "dfc-val-new.csv").unlink(), "lacks dfc-val-new.csv .* or state --partition contest"),
        (lambda base: (base / "dfc-val-new.csv").write_text("../../etc/passwd\n"), "is no name like ROIs0000_test_dfc"),
        (lambda base: (base / "dfc-val-new.csv").write_bytes(b"\xff\xfe\x00"), "dfc-val-new.csv: cannot be read"),
        (
            lambda base: (base / "dfc-val-new.csv").write_text("ROIs0000_test_dfc_0_p7.tif\n"),
            "ROIs0000_test_dfc_0_p7.tif is in dfc-.*-new.csv too",
        ),
    ],
    ids=["missing", "hostile", "binary", "twice"],
)
def test_csv_files_that_do_not_divide_are_an_error(tmp_path, spoil, message):
    root = copernicus_bench(tmp_path)
    spoil(root / "dfc2020_s1s2")
    with pytest.raises(ValueError, match=message):
        Dfc2020(path=root).locations()


def test_copernicus_benchs_division_needs_its_csv_files(tmp_path):
    with pytest.raises(ValueError, match="lacks dfc-train-new.csv, dfc-val-new.csv, dfc-test-new.csv"):
        Dfc2020(path=contest(tmp_path), partition="copernicus-bench").locations()


# --- the public bundle ------------------------------------------------------------------------------------------------


def test_the_public_bundle_is_read_by_city_and_leaves_the_division_to_the_user(tmp_path):
    found = read_all(Dfc2020(path=public_bundle(tmp_path)))
    assert list(found) == ["autumn_Mumbai_p41/0", "spring_BlackForest_p42/0", "winter_MexicoCity_p40/0"]
    assert equal(found["autumn_Mumbai_p41/0"], 1)
    assert {patch.split for patch in found.values()} == {"train"}


def test_the_same_patches_under_two_names_are_refused(tmp_path):
    public_bundle(tmp_path)
    contest(tmp_path / "contest")
    with pytest.raises(ValueError, match="the same patches under other names: read one of the two"):
        Dfc2020(path=tmp_path).locations()


def test_sen12ms_is_not_taken_for_it(tmp_path):
    write_tif(tmp_path / "ROIs1158_spring/s2_1/ROIs1158_spring_s2_1_p30.tif", optical(SIZE))
    with pytest.raises(ValueError, match="holds no ROIs0000"):
        Dfc2020(path=tmp_path).locations()


# --- stores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [dfc2020_tree, contest, copernicus_bench, public_bundle])
def test_every_copy_becomes_a_raw_store_that_gives_the_patches_back(tmp_path, tree):
    source = Dfc2020(path=tree(tmp_path / "tree"))
    ingest(source, tmp_path / "store")
    store = PatchStore.open(tmp_path / "store")
    assert (store.scheme, store.encoding) == (DFC2020, "raw")
    expected = read_all(source)
    found = [patch for split in store.splits for patch in store.sample(20, split)]
    assert {patch.patch_id: patch.split for patch in found} == {name: one.split for name, one in expected.items()}
    for patch in found:
        np.testing.assert_array_equal(patch.label, expected[patch.patch_id].label)
        for name, image in patch.images.items():
            np.testing.assert_array_equal(image, expected[patch.patch_id].images[name])
