"""SSL4EO-S12@DW and @OSM: exact hand-over, both codings, faults by name."""

from pathlib import Path

import numpy as np
import pytest
from trees import classes, optical, radar, write_tif

from cromss.data.ingestion import ingest
from cromss.data.patch import Patch
from cromss.data.sources.base import Skipped
from cromss.data.sources.ssl4eo_downstream import Ssl4eoDownstream
from cromss.data.store import PatchStore
from cromss.landcover import DYNAMIC_WORLD, IGNORE, OSM, SSL4EO_DW
from cromss.sensors import SENTINEL2

SIZE = (24, 24)
KEYS = {"test": ("0000012",), "train": ("0000003", "0000012")}  # a key is a name within its split


def pixels(labels: str, split: str, key: str) -> dict[str, np.ndarray]:
    seed = int(key) + 100 * (split == "test") + 1000 * (labels == "osm")
    coded = classes(SIZE, seed, among=range(11 if labels == "dw" else 14))
    return {"s1": radar(SIZE, seed), "s2": optical(SIZE, seed), labels: coded}


def file(root: Path, labels: str, split: str, what: str, key: str) -> Path:
    folder = f"image_{what}" if what in ("s1", "s2") else f"label_{what}"
    return root / f"{labels}_{split}" / folder / f"{what}_{key}.tif"


def downstream_tree(root: Path) -> Path:
    """Both sets, both splits, three keys each."""
    for labels in ("dw", "osm"):
        for split, keys in KEYS.items():
            for key in keys:
                for what, values in pixels(labels, split, key).items():
                    write_tif(file(root, labels, split, what, key), values)
    return root


def read_all(source) -> dict[str, Patch | Skipped]:
    found = [one for location in source.locations() for one in source.read(location)]
    return {one.patch_id if isinstance(one, Patch) else one.name: one for one in found}


ALL = ["test_0000012/0", "train_0000003/0", "train_0000012/0"]


@pytest.mark.parametrize("wrapper", ["", "data_s12"])
@pytest.mark.parametrize("labels", ["dw", "osm"])
def test_both_sets_are_read_pixel_by_pixel_with_their_splits(tmp_path, labels, wrapper):
    downstream_tree(tmp_path / wrapper)
    source = Ssl4eoDownstream(path=tmp_path, labels=labels)
    found = read_all(source)
    assert list(found) == ALL
    assert source.encoding == "raw"
    for name, patch in found.items():
        split, key = name.split("/")[0].split("_")
        expected = pixels(labels, split, key)
        assert patch.split == split
        np.testing.assert_array_equal(patch.images["s1"], expected["s1"])
        np.testing.assert_array_equal(patch.images["s2"], expected["s2"])
        unmarked = np.isin(expected[labels], (0, 10) if labels == "dw" else (0,))
        np.testing.assert_array_equal(patch.label, np.where(unmarked, IGNORE, expected[labels].astype(int) - 1))


def test_bands_are_kept_by_name(tmp_path):
    patch = read_all(Ssl4eoDownstream(path=downstream_tree(tmp_path), bands="9"))[ALL[1]]
    np.testing.assert_array_equal(patch.images["s2"], pixels("dw", "train", "0000003")["s2"][SENTINEL2.indices("9")])


def test_of_a_label_of_several_bands_the_second_is_read(tmp_path):
    root = downstream_tree(tmp_path)
    coded = pixels("dw", "train", "0000003")["dw"]
    target = file(root, "dw", "train", "dw", "0000003")
    write_tif(target, np.stack([np.full(SIZE, 200, np.uint8), coded, np.full(SIZE, 77, np.uint8)]))
    np.testing.assert_array_equal(read_all(Ssl4eoDownstream(path=root))[ALL[1]].label, SSL4EO_DW.read(coded))


def test_the_coding_is_dynamic_worlds_one_higher():
    assert (SSL4EO_DW.classes, SSL4EO_DW.colours) == (DYNAMIC_WORLD.classes, DYNAMIC_WORLD.colours)
    own = np.arange(9)
    np.testing.assert_array_equal(SSL4EO_DW.read(own + 1), DYNAMIC_WORLD.read(own))
    np.testing.assert_array_equal(SSL4EO_DW.read(np.array([0, 10])), [IGNORE, IGNORE])


def test_one_split_alone_is_a_set_and_the_other_set_is_no_substitute(tmp_path):
    root = downstream_tree(tmp_path)
    (root / "dw_test").rename(root / "elsewhere")
    assert list(read_all(Ssl4eoDownstream(path=root))) == ALL[1:]
    (root / "dw_train").rename(root / "elsewhere2")
    with pytest.raises(ValueError, match="holds no dw_train/ or dw_test/"):
        Ssl4eoDownstream(path=root).locations()


def _rewrite(labels: str, what: str, values: np.ndarray):
    return lambda root: write_tif(file(root, labels, "train", what, "0000003"), values)


FAULTS = {
    "no radar": (lambda root: file(root, "dw", "train", "s1", "0000003").unlink(), "s1_0000003.tif: missing"),
    "no optical image": (lambda root: file(root, "dw", "train", "s2", "0000003").unlink(), "s2_0000003.tif: missing"),
    "no label": (lambda root: file(root, "dw", "train", "dw", "0000003").unlink(), "dw_0000003.tif: missing"),
    "truncated": (
        lambda root: file(root, "dw", "train", "s2", "0000003").write_bytes(b"II*\0" + bytes(40)),
        "s2_0000003.tif: not a readable GeoTIFF",
    ),
    "vrt": (
        lambda root: file(root, "dw", "train", "dw", "0000003").write_text("<VRTDataset></VRTDataset>"),
        "dw_0000003.tif: not a readable GeoTIFF",
    ),
    "bands": (_rewrite("dw", "s2", optical(SIZE)[:12]), "12 unnamed bands, 13 expected"),
    "radar bands": (_rewrite("dw", "s1", radar(SIZE)[:1]), "s1_0000003.tif: 1 bands, expected 2"),
    "classes": (_rewrite("dw", "dw", classes(SIZE, among=(1, 11, 40))), "label values [11, 40] are outside"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_patch_is_skipped_with_its_reason_and_the_others_are_kept(tmp_path, fault):
    spoil, reason = FAULTS[fault]
    root = downstream_tree(tmp_path)
    spoil(root)
    found = read_all(Ssl4eoDownstream(path=root))
    assert list(found) == ALL
    assert [name for name, one in found.items() if isinstance(one, Skipped)] == ["train_0000003/0"]
    assert reason in found["train_0000003/0"].reason


def test_an_osm_label_has_one_band(tmp_path):
    root = downstream_tree(tmp_path)
    _rewrite("osm", "osm", np.stack([classes(SIZE, among=range(14))] * 2))(root)
    found = read_all(Ssl4eoDownstream(path=root, labels="osm"))
    assert found["train_0000003/0"].reason == "osm_0000003.tif: 2 bands, expected 1"


@pytest.mark.parametrize(("labels", "scheme"), [("dw", SSL4EO_DW), ("osm", OSM)])
def test_it_becomes_a_raw_store_that_gives_the_patches_back(tmp_path, labels, scheme):
    source = Ssl4eoDownstream(path=downstream_tree(tmp_path / "tree"), labels=labels)
    ingest(source, tmp_path / "store")
    store = PatchStore.open(tmp_path / "store")
    assert (store.scheme, store.encoding, store.splits) == (scheme, "raw", ["test", "train"])
    expected = read_all(source)
    found = [patch for split in store.splits for patch in store.sample(10, split)]
    assert {patch.patch_id for patch in found} == set(expected)
    for patch in found:
        np.testing.assert_array_equal(patch.label, expected[patch.patch_id].label)
        for name, image in patch.images.items():
            np.testing.assert_array_equal(image, expected[patch.patch_id].images[name])
