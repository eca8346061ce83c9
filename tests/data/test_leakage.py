"""The audit: ground and pixels, each with cases whose answer is known beforehand."""

import json
from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.warp import transform as reproject
from scipy.ndimage import gaussian_filter

from cromss.contract import physical
from cromss.data.ingestion import Ingest, ingest
from cromss.data.leakage import leakage
from cromss.data.likeness import CODES, SAME, TURNS, Lens, compare, turned
from cromss.data.patch import Patch
from cromss.data.store import PatchStore, StoreWriter
from cromss.data.synthetic import SyntheticEarth
from cromss.landcover import IGNORE
from cromss.sensors import SENTINEL1, SENTINEL2

SIZE = (48, 48)
BANDS = ("B2", "B3", "B4", "B8")
UTM = "EPSG:32633"


def scene(seed: int, size=SIZE, bands=BANDS) -> np.ndarray:
    """DN (C,H,W) uint16 with edges, texture and grain, as land has them."""
    rng = np.random.default_rng(seed)
    fields = gaussian_filter(rng.normal(size=size), 5) > 0
    texture = gaussian_filter(rng.normal(size=(len(bands), *size)), (0, 2, 2)) * 2500
    grain = rng.normal(0, 60, (len(bands), *size))
    level = rng.uniform(800, 2200, (len(bands), 1, 1)) + fields * rng.uniform(-700, 900, (len(bands), 1, 1))
    return np.clip(np.rint(level + texture + grain), 1, 9000).astype(np.uint16)


def patch(
    name: str, s2: np.ndarray, *, split="train", crs="", corner=(0.0, 0.0), s1=None, bands=BANDS, **more
) -> Patch:
    location, acquisition = name.split("/")
    size = s2.shape[1:]
    if s1 is None:
        s1 = np.random.default_rng(crc32(name.encode())).normal(-14, 3, (2, *size)).astype(np.float32)
    return Patch(
        patch_id=name,
        location_id=location,
        acquisition=acquisition,
        images={"s1": s1, "s2": s2},
        contracts={"s1": physical("s1", SENTINEL1.bands), "s2": physical("s2", bands)},
        label=np.zeros(size, np.uint8),
        split=split,
        crs=crs,
        transform=(10.0, 0.0, corner[0], 0.0, -10.0, corner[1]),
        **more,
    )


def store(path, patches: list[Patch], encoding="uint8", keep=("s1", "s2")) -> PatchStore:
    """Of patches, those of a location in the order given."""
    bands = {name: patches[0].contracts[name].bands for name in keep}
    places: dict[str, list[Patch]] = {}
    for one in patches:
        shown = {name: one.images[name] for name in keep}
        contracts = {name: one.contracts[name] for name in keep}
        places.setdefault(one.location_id, []).append(replace(one, images=shown, contracts=contracts))
    with StoreWriter(path, scheme="dynamic-world", bands=bands, size=patches[0].size, encoding=encoding) as writer:
        for place in places.values():
            writer.add(place, place[0].split, 0)
    return PatchStore.open(path)


@pytest.fixture
def both(tmp_path):
    """both(pretraining patches, test patches, encoding of each) -> what the audit says."""

    def audited(pretraining, tests, encodings=("uint8", "raw"), **options):
        one = store(tmp_path / "pretraining", pretraining, encodings[0])
        other = store(tmp_path / "downstream", [replace(test, split="test") for test in tests], encodings[1])
        return leakage(one, other, **options)

    return audited


def distinct(number: int, first=100) -> list[Patch]:
    return [patch(f"p{i}/0", scene(first + i)) for i in range(number)]


# --- ground -----------------------------------------------------------------------------------------------------------


def at(name: str, corner, crs=UTM) -> Patch:
    return patch(name, scene(crc32(name.encode())), crs=crs, corner=corner)


def test_shared_ground_and_the_buffer_are_told_apart(both):
    """480 m tiles: one overlapped by 80 m, one 600 m away, one 3 km away, one that does not say where it lies."""
    y = 5300000.0
    found = both(
        [at("lies/0", (500000, y)), at("nowhere/0", (500000, y), crs="")],
        [
            at("on/0", (500400, y)),
            at("near/0", (501080, y)),
            at("far/0", (503480, y)),
            at("lost/0", (500000, y), crs=""),
        ],
    )
    assert (found.tiles, found.unplaced, found.pretraining_tiles, found.pretraining_unplaced) == (4, 1, 2, 1)
    assert [(one.tile, one.other, one.metres) for one in found.shared] == [("on/0", "lies/0", 0)]
    assert [(one.tile, one.other) for one in found.within] == [("near/0", "lies/0")]
    assert found.within[0].metres == pytest.approx(600 / 0.9996, abs=0.1)
    said = str(found)
    assert "shared ground    1 of 3 test tiles" in said
    assert "on/0 lies on lies/0" in said
    assert "within 1,000 m   1 more" in said
    assert "near/0 lies 600 m from lies/0" in said
    assert "1 test tiles do not say where they lie" in said


@pytest.mark.parametrize(("buffer", "within"), [(500, 0), (601, 1), (3002, 2)])
def test_the_buffer_is_in_metres_of_ground(both, buffer, within):
    y = 5300000.0
    found = both([at("a/0", (500000, y))], [at("b/0", (503480, y)), at("c/0", (501080, y))], buffer=buffer)
    assert [one.tile for one in found.within] == ["c/0", "b/0"][:within]  # the nearest first
    assert found.shared == ()


def test_a_tile_of_the_next_utm_zone_is_compared_on_the_ground(both):
    (west,), (top,) = reproject("EPSG:4326", UTM, [18.0], [48.0])
    (east,), (high,) = reproject("EPSG:4326", "EPSG:32634", [18.0], [48.0])
    here = at("here/0", (west - 480, top))
    tests = [at("across/0", (east + 300, high), "EPSG:32634"), at("over/0", (east - 200, high), "EPSG:32634")]
    found = both([here], tests)
    assert [one.tile for one in found.shared] == ["over/0"]
    assert found.within[0].metres == pytest.approx(300, abs=5)


def test_only_training_tiles_count_and_only_the_asked_splits_are_judged(tmp_path):
    y = 5300000.0
    one = store(tmp_path / "a", [at("t/0", (500000, y)), replace(at("held/0", (510000, y)), split="test")])
    tests = [replace(at("x/0", (510000, y)), split="test"), replace(at("y/0", (500000, y)), split="train")]
    other = store(tmp_path / "b", tests)
    assert [(n.tile, n.other) for n in leakage(one, other).near] == []
    assert [(n.tile, n.other) for n in leakage(one, other, splits=("train", "test")).near] == [("y/0", "t/0")]
    with pytest.raises(ValueError, match=r"b: has no split validation; valid: test, train"):
        leakage(one, other, splits=("validation",))


# --- pixels: what must be found ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(8), ids=TURNS)
def test_a_copy_is_found_in_every_flip_and_turn(both, turn):
    copy = patch("copy/0", scene(103))
    found = both(
        [replace(one, images={k: turned(v, turn) for k, v in one.images.items()}) for one in distinct(6)], [copy]
    )
    (pair,) = found.duplicates
    assert (pair.test.id, pair.other.id, pair.shift) == ("copy/0", "p3/0", (0, 0))
    assert pair.turn == turn
    assert (pair.correlation, pair.difference) == (pytest.approx(1), 0)
    assert (TURNS[turn] in str(pair)) or turn == 0
    assert found.duplicate_tiles == 1


@pytest.mark.parametrize("encodings", [("uint8", "raw"), ("raw", "uint8"), ("raw", "raw"), ("uint8", "uint8")])
def test_the_encoding_of_a_copy_does_not_matter(both, encodings):
    found = both(distinct(5), [patch("copy/0", scene(102))], encodings)
    assert [(pair.other.id, pair.difference) for pair in found.duplicates] == [("p2/0", 0)]


def test_only_common_bands_are_compared_whatever_their_order(both):
    swapped = ("B8", "B11", "B4", "B2")
    copy = scene(102, bands=BANDS)
    pixels = np.stack([copy[3], scene(7, bands=("B11",))[0], copy[2], copy[0]])
    found = both(distinct(5), [patch("copy/0", pixels, bands=swapped)])
    assert found.bands == ("B2", "B4", "B8")
    assert [pair.other.id for pair in found.duplicates] == ["p2/0"]


def test_a_noisy_copy_is_found(both):
    """Gaussian noise of 3 codes: 3 / 64 of a band's standard deviation."""
    noise = np.random.default_rng(1).normal(0, 3, (4, *SIZE)) * SENTINEL2.interval(BANDS)[1][:, None, None] / 255
    found = both(distinct(5), [patch("copy/0", np.clip(scene(104) + noise, 1, 9000).astype(np.uint16))])
    (pair,) = found.duplicates
    assert pair.other.id == "p4/0"
    assert 2 < pair.difference < 3.2


@given(st.integers(-2, 2), st.integers(-2, 2), st.integers(0, 7))
def test_a_copy_moved_by_whole_pixels_is_the_same_picture_once_moved_back(rows, columns, turn):
    large = SENTINEL2.encode(scene(5, (60, 60)), BANDS)
    valid = np.ones(SIZE, bool)
    one, other = (large[:, 6 + y : 54 + y, 6 + x : 54 + x] for y, x in ((0, 0), (rows, columns)))
    assert compare(one, valid, other, valid) == ((-rows, -columns), pytest.approx(1), 0)
    one, other = turned(one, turn), turned(other, turn)
    _, correlation, difference = compare(one, valid, other, valid)
    assert (correlation, difference) == (pytest.approx(1), 0)


def test_a_moved_copy_is_found_in_a_store(both):
    wide = scene(9, (52, 52))
    found = both([*distinct(5), patch("wide/0", wide[:, 2:50, 3:51])], [patch("copy/0", wide[:, :48, :48])])
    assert [(pair.other.id, pair.shift) for pair in found.duplicates] == [("wide/0", (-2, -3))]
    assert "shifted by -2, -3 pixels" in str(found)


def test_patches_of_another_size_are_compared_in_their_middle(both):
    large = [patch(f"p{i}/0", scene(200 + i, (60, 56))) for i in range(4)]
    found = both(large, [patch("copy/0", scene(202, (60, 56))[:, 6:54, 4:52])])
    assert found.side == 48
    assert [(pair.other.id, pair.difference) for pair in found.duplicates] == [("p2/0", 0)]
    assert "48 x 48 pixels, the middle of each (pretraining 60 x 56, test 48 x 48)" in str(found)


def test_every_acquisition_of_both_is_read(both):
    seasons = [patch(f"p/{i}", scene(300 + i)) for i in range(5)]
    tests = [patch(f"t/{i}", scene(seed)) for i, seed in enumerate((1, 303, 2, 304))]
    found = both(seasons, tests)
    assert (found.patches, found.pretraining_patches, found.tiles, found.duplicate_tiles) == (4, 5, 1, 1)
    assert sorted((pair.test.id, pair.other.id) for pair in found.duplicates) == [("t/1", "p/3"), ("t/3", "p/4")]


def test_sentinel_1_is_compared_where_there_is_no_sentinel_2(tmp_path):
    decibel = [-14 + 4 * np.stack([gaussian_filter(scene(i, bands=("B2",))[0] / 900.0, 1)] * 2) for i in range(5)]
    decibel = [(d - d.mean() - 14).astype(np.float32) for d in decibel]
    one = store(tmp_path / "a", [patch(f"p{i}/0", scene(i), s1=d) for i, d in enumerate(decibel)], keep=("s1",))
    other = store(tmp_path / "b", [patch("t/0", scene(9), s1=decibel[3], split="test")], "raw")
    found = leakage(one, other)
    assert (found.modality, found.bands) == ("s1", ("VV", "VH"))
    assert [pair.other.id for pair in found.duplicates] == ["p3/0"]
    optical = store(tmp_path / "c", [patch("t/0", scene(9), split="test")], keep=("s2",))
    with pytest.raises(ValueError, match=r"no band in common: .*a \("):
        leakage(one, optical)


def test_pixels_without_data_do_not_hide_a_copy(both):
    valid = np.ones(SIZE, bool)
    valid[:4] = False
    black = np.where(valid, scene(400), 1).astype(np.uint16)
    found = both([patch("p0/0", scene(400)), patch("p1/0", scene(401))], [patch("t/0", black, valid=valid)])
    assert [(pair.other.id, pair.difference) for pair in found.duplicates] == [("p0/0", 0)]


@pytest.mark.parametrize(("rows", "enough"), [(23, True), (25, False)])
def test_less_than_half_a_patch_is_too_little_to_compare(rows, enough):
    codes, valid = SENTINEL2.encode(scene(6), BANDS), np.ones(SIZE, bool)
    valid[:rows] = False
    for one, other in ((valid, np.ones(SIZE, bool)), (np.ones(SIZE, bool), valid)):
        assert compare(codes, one, codes, other) == (((0, 0), pytest.approx(1), 0) if enough else None)


# --- pixels: what must not --------------------------------------------------------------------------------------------


def test_other_scenes_and_other_textures_are_no_duplicates(both):
    found = both(distinct(20), [patch(f"t{i}/0", scene(700 + i)) for i in range(10)])
    assert found.duplicates == ()
    assert found.duplicate_tiles == 0
    assert "near-duplicates  0 of 10 test tiles" in str(found)


def test_the_same_fields_with_other_texture_are_a_lookalike(both):
    rng = np.random.default_rng(3)
    base = scene(1).astype(float)
    blurred = gaussian_filter(base, (0, 3, 3))
    other = np.clip(blurred + rng.normal(0, 350, base.shape), 1, 9000).astype(np.uint16)
    found = both([*distinct(3), patch("p/0", base.astype(np.uint16))], [patch("t/0", other)])
    assert found.duplicates == ()
    assert [(pair.test.id, pair.other.id) for pair in found.lookalikes] == [("t/0", "p/0")]
    assert found.lookalikes[0].correlation < SAME


def test_patches_of_one_shade_are_counted_not_matched(both):
    snow = np.full((4, *SIZE), 9000, np.uint16)
    found = both([patch("p/0", snow), *distinct(2)], [patch("t/0", snow), patch("copy/0", scene(101))])
    assert (found.flat, found.patches) == (1, 2)
    assert [pair.test.id for pair in found.duplicates] == ["copy/0"]
    assert "1 test patches are of one shade" in str(found)


def test_a_store_of_nothing_but_snow_is_audited(both):
    snow = np.full((4, *SIZE), 9000, np.uint16)
    found = both([patch("p/0", snow)], [patch("t/0", snow)])
    assert (found.flat, found.duplicates, found.lookalikes) == (1, (), ())


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def earth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earth")
    world = SyntheticEarth(places=12, seasons=2, size=32, train=2, test=10)
    ingest(world, folder / "pretraining")
    ingest(world.model_copy(update={"downstream": True}), folder / "downstream")
    return PatchStore.open(folder / "pretraining"), PatchStore.open(folder / "downstream")


def test_the_two_regions_of_the_synthetic_earth_are_clean(earth):
    lines = []
    found = leakage(*earth, buffer=100_000, progress=lines.append)
    assert (found.tiles, found.patches, found.pretraining_patches) == (10, 10, 24)
    assert (found.near, found.duplicates, found.unplaced, found.flat) == ((), (), 0, 0)
    assert any("24/24 pretraining patches read" in line for line in lines)


def test_a_store_leaks_into_itself_entirely_and_seasons_do_not_match_each_other(earth):
    store = earth[0]
    found = leakage(store, store, splits=("train",))
    assert len(found.shared) == found.tiles == found.duplicate_tiles == 12
    assert len(found.duplicates) == found.patches == 24
    assert all(pair.test == pair.other and pair.turn == 0 for pair in found.duplicates)
    record = json.loads(found.to_json())
    assert (record["shared"], record["within"], record["duplicate_tiles"]) == (12, 0, 12)
    assert record["limits"] == {"correlation": SAME, "difference": CODES}
    assert record["duplicates"][0]["turn"] == "as it is"
    assert record["pretraining"] == str(store.path)


def test_the_lens_takes_what_all_stores_have(earth):
    assert Lens.of(*earth).bands == SENTINEL2.bands
    assert Lens.of(*earth).side == 32


@pytest.fixture(scope="module")
def pairs(shared):
    return shared / "data/real/pairs"


def test_other_dates_of_real_places_are_no_duplicates_and_re_encoded_copies_are(pairs, tmp_path):
    from cromss.data.sources.geotiff import GeoTiffTree

    tree = GeoTiffTree(path=pairs, bands="9", offset="0")
    only = Ingest(include=("worldcereal-*", "sen12mscr-*"), tile=48)
    ingest(tree, tmp_path / "codes", only)
    ingest(tree, tmp_path / "raw", only.model_copy(update={"encoding": "raw"}))
    stores = [PatchStore.open(tmp_path / name) for name in ("codes", "raw")]
    found = leakage(*stores, splits=("train",))
    acquisitions = sum(stores[0].manifest.patches.values())
    assert len(found.duplicates) == acquisitions == found.patches - found.flat
    assert all(pair.test.id == pair.other.id and pair.difference == 0 for pair in found.duplicates)

    dates = [
        _one_date(stores[0], tmp_path / name, date) for name, date in (("spring", "20210401"), ("autumn", "20211001"))
    ]
    found = leakage(*dates, splits=("train",))
    assert len(found.shared) == found.tiles == 4
    assert found.duplicates == ()


def _one_date(store: PatchStore, path, date: str) -> PatchStore:
    """The patches of one acquisition of a store."""
    kept = {one.patch_id: one for seed in range(40) for one in store.sample(99, seed=seed) if one.acquisition == date}
    with StoreWriter(path, scheme=store.scheme.name, bands=store.bands, size=store.size) as writer:
        for one in kept.values():
            writer.add([one], "train", 0)
    return PatchStore.open(path)


def test_labels_play_no_part(both):
    unlabelled = [replace(one, label=np.full(SIZE, IGNORE, np.uint8)) for one in distinct(3)]
    assert len(both(unlabelled, [patch("copy/0", scene(101))]).duplicates) == 1
