"""SEN12MS: what is in the files is in the patches, and its land cover meets DFC2020's classes."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from trees import classes, optical, radar, write_tif

from cromss.data.ingestion import Ingest, ingest
from cromss.data.patch import Patch
from cromss.data.sources.base import Skipped
from cromss.data.sources.sen12ms import Sen12ms
from cromss.data.store import PatchStore
from cromss.landcover import DFC2020, IGBP, IGBP_SIMPLIFIED, IGNORE
from cromss.sensors import SENTINEL2

SIZE = (24, 24)
PATCHES = {"ROIs1158_spring": {1: (16, 9), 146: (202,)}, "ROIs2017_winter": {1: (30,)}}


def cover(seed: int) -> np.ndarray:
    """lc: IGBP 1..17, then three bands of LCCS, whose values (up to 43) IGBP does not know."""
    lccs = [classes(SIZE, seed + extra, among=(11, 21, 43)) for extra in (1, 2, 3)]
    return np.stack([classes(SIZE, seed, among=range(1, 18)), *lccs]).astype(np.uint16)


def pixels(season: str, scene: int, number: int) -> dict[str, np.ndarray]:
    seed = 1000 * scene + number + 7 * (season == "ROIs2017_winter")
    s1 = np.clip(radar(SIZE, seed), -25, 0)  # as SEN12MS has it
    return {"s1": s1, "s2": optical(SIZE, seed), "lc": cover(seed)}


def file(root: Path, season: str, what: str, scene: int, number: int) -> Path:
    return root / season / f"{what}_{scene}" / f"{season}_{what}_{scene}_p{number}.tif"


def sen12ms_tree(root: Path) -> Path:
    """Two seasons, three scenes, four patches."""
    for season, scenes in PATCHES.items():
        for scene, numbers in scenes.items():
            for number in numbers:
                for what, values in pixels(season, scene, number).items():
                    write_tif(file(root, season, what, scene, number), values)
    return root


def read_all(source) -> dict[str, Patch | Skipped]:
    found = [one for location in source.locations() for one in source.read(location)]
    return {one.patch_id if isinstance(one, Patch) else one.name: one for one in found}


ALL = [
    "ROIs1158_spring_1_p9/spring",
    "ROIs1158_spring_1_p16/spring",
    "ROIs1158_spring_146_p202/spring",
    "ROIs2017_winter_1_p30/winter",
]


@pytest.mark.parametrize("labels", ["igbp", "igbp-simplified"])
def test_every_patch_is_a_location_of_one_date_read_pixel_by_pixel(tmp_path, labels):
    found = read_all(Sen12ms(path=sen12ms_tree(tmp_path), labels=labels))
    assert list(found) == ALL
    for name, patch in found.items():
        season, scene, number = name.split("/")[0].rsplit("_", 2)
        expected = pixels(season, int(scene), int(number[1:]))
        np.testing.assert_array_equal(patch.images["s1"], expected["s1"])
        np.testing.assert_array_equal(patch.images["s2"], expected["s2"])
        scheme = {"igbp": IGBP, "igbp-simplified": IGBP_SIMPLIFIED}[labels]
        np.testing.assert_array_equal(patch.label, scheme.read(expected["lc"][0]))
        assert (patch.split, patch.crs, patch.notes["s2_offset"]) == ("train", "EPSG:32633", "none, by B10")


def test_bands_are_kept_by_name(tmp_path):
    patch = read_all(Sen12ms(path=sen12ms_tree(tmp_path), bands="B4,B3,B2"))[ALL[1]]
    expected = pixels("ROIs1158_spring", 1, 16)["s2"][SENTINEL2.indices(["B4", "B3", "B2"])]
    np.testing.assert_array_equal(patch.images["s2"], expected)


@pytest.mark.parametrize("where", ["SEN12MS/ROIs1158_spring", "one sensor an archive", "the season itself"])
def test_it_is_found_at_any_depth_and_with_the_archives_unpacked_apart(tmp_path, where):
    tree = sen12ms_tree(tmp_path / "tree") / "ROIs1158_spring"
    root = tmp_path / "root"
    if where == "one sensor an archive":
        for what in ("s1", "s2", "lc"):
            for folder in sorted(tree.glob(f"{what}_*")):
                target = root / f"ROIs1158_spring_{what}" / "ROIs1158_spring" / folder.name
                target.parent.mkdir(parents=True, exist_ok=True)
                folder.rename(target)
    elif where == "the season itself":
        root = tree
    else:
        (root / "SEN12MS").mkdir(parents=True)
        tree.rename(root / where)
    found = read_all(Sen12ms(path=root))
    assert list(found) == ALL[:3]
    assert all(isinstance(one, Patch) for one in found.values())


def test_files_beside_the_layout_are_not_patches(tmp_path):
    root = sen12ms_tree(tmp_path)
    (root / "__MACOSX/ROIs1158_spring/s2_9").mkdir(parents=True)
    (root / "__MACOSX/ROIs1158_spring/s2_9/ROIs1158_spring_s2_9_p1.tif").write_bytes(b"\0\5\x16\7")
    (root / "ROIs1158_spring/s2_1/._ROIs1158_spring_s2_1_p16.tif").write_bytes(b"\0\5\x16\7")
    write_tif(root / "ROIs1158_spring/s2_1/preview_p77.tif", optical(SIZE))
    write_tif(root / "ROIs0000_test/s2_0/ROIs0000_test_s2_0_p1.tif", optical(SIZE))  # DFC2020
    cloudy = root / "ROIs1158_spring/s2_cloudy_1/ROIs1158_spring_s2_cloudy_1_p30.tif"  # SEN12MS-CR
    write_tif(cloudy, optical(SIZE))
    assert [location.id for location in Sen12ms(path=root).locations()] == [name.split("/")[0] for name in ALL]


def _with_nan(root: Path) -> None:  # as patch 202 of scene 146 of the summer has it
    s1 = radar(SIZE)
    s1[:] = np.nan
    write_tif(file(root, "ROIs1158_spring", "s1", 146, 202), s1)


def _rewrite(what: str, values: np.ndarray):
    return lambda root: write_tif(file(root, "ROIs1158_spring", what, 146, 202), values)


FAULTS = {
    "no land cover": (lambda root: file(root, "ROIs1158_spring", "lc", 146, 202).unlink(), "lc_146_p202.tif: missing"),
    "no optical image": (lambda root: file(root, "ROIs1158_spring", "s2", 146, 202).unlink(), "s2_146_p202.tif: miss"),
    "no radar folder": (
        lambda root: (root / "ROIs1158_spring/s1_146").rename(root / "ROIs1158_spring/old"),
        "ROIs1158_spring_s1_146_p202.tif: missing",
    ),
    "truncated": (
        lambda root: file(root, "ROIs1158_spring", "s2", 146, 202).write_bytes(b"II*\0" + bytes(40)),
        "s2_146_p202.tif: not a readable GeoTIFF",
    ),
    "vrt": (
        lambda root: file(root, "ROIs1158_spring", "lc", 146, 202).write_text("<VRTDataset></VRTDataset>"),
        "lc_146_p202.tif: not a readable GeoTIFF",
    ),
    "bands of land cover": (_rewrite("lc", cover(1)[:1]), "lc_146_p202.tif: 1 bands, expected 4"),
    "bands of optical image": (_rewrite("s2", optical(SIZE)[:12]), "12 unnamed bands, 13 expected"),
    "classes": (_rewrite("lc", cover(1) + np.uint16(30)), "are outside the scheme 'igbp'"),
    "all nan": (_with_nan, "s1 has no pixel with data"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_patch_is_skipped_with_its_reason_and_the_others_are_kept(tmp_path, fault):
    spoil, reason = FAULTS[fault]
    root = sen12ms_tree(tmp_path)
    spoil(root)
    found = read_all(Sen12ms(path=root))
    assert list(found) == ALL
    assert [name for name, one in found.items() if isinstance(one, Skipped)] == ["ROIs1158_spring_146_p202/spring"]
    assert reason in found["ROIs1158_spring_146_p202/spring"].reason


def test_a_scene_in_two_folders_is_an_error_that_names_both(tmp_path):
    root = sen12ms_tree(tmp_path)
    again = root / "copy/ROIs1158_spring/s2_1"
    again.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"one scene lies in two folders: .*ROIs1158_spring/s2_1 and .*copy/ROIs1158"):
        Sen12ms(path=root).locations()


def test_it_becomes_a_store_that_gives_the_patches_back(tmp_path):
    source = Sen12ms(path=sen12ms_tree(tmp_path / "tree"))
    ingest(source, tmp_path / "store", Ingest(encoding="raw"))
    store = PatchStore.open(tmp_path / "store")
    assert store.scheme == IGBP
    expected = read_all(source)
    found = store.sample(10)
    assert {patch.patch_id for patch in found} == set(expected)
    for patch in found:
        np.testing.assert_array_equal(patch.label, expected[patch.patch_id].label)
        for name, image in patch.images.items():
            np.testing.assert_array_equal(image, expected[patch.patch_id].images[name])


def test_pretraining_stores_are_uint8_unless_asked(tmp_path):
    ingest(Sen12ms(path=sen12ms_tree(tmp_path / "tree")), tmp_path / "store")
    assert PatchStore.open(tmp_path / "store").encoding == "uint8"


# --- the schemes ------------------------------------------------------------------------------------------------------


def test_igbp_numbers_its_17_classes_in_the_standard_order():
    np.testing.assert_array_equal(IGBP.read(np.arange(1, 18)), np.arange(17))
    assert [IGBP.classes[number - 1] for number in (1, 5, 9, 13, 17)] == [
        "evergreen needleleaf forest", "mixed forest", "savanna", "urban and built-up", "water",
    ]  # fmt: skip
    assert len(set(IGBP.colours)) == len(IGBP) == 17
    np.testing.assert_array_equal(IGBP.read(np.array([0, 255])), [IGNORE, IGNORE])


def test_the_simplified_classes_are_those_of_dfc2020_number_for_number():
    """Oracle: the contest's own table, IGBP 0..17 to its label values."""
    contest = np.array([0, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10])
    simple, truth = IGBP_SIMPLIFIED.read(np.arange(18)), DFC2020.read(contest)
    scored = truth != IGNORE  # DFC2020 has neither savanna nor snow
    np.testing.assert_array_equal(simple[scored], truth[scored])
    assert IGBP_SIMPLIFIED.classes[:8] == DFC2020.classes
    assert [IGBP_SIMPLIFIED.classes[number] for number in simple[[8, 9, 15]]] == ["savanna"] * 2 + ["snow and ice"]
    assert len(IGBP_SIMPLIFIED.colours) == len(IGBP_SIMPLIFIED) == 10


def test_real_igbp_codes_survive_a_file_marked_nodata_255(tmp_path):
    lc = cover(3)
    lc[0, :4] = 255
    root = sen12ms_tree(tmp_path)
    target = write_tif(file(root, "ROIs1158_spring", "lc", 1, 9), lc, nodata=255)
    with rasterio.open(target) as raster:
        assert raster.nodata == 255
    label = read_all(Sen12ms(path=root))[ALL[0]].label
    assert (label[:4] == IGNORE).all()
    np.testing.assert_array_equal(label[4:], lc[0, 4:] - 1)
