import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.warp import transform as reproject

from cromss.contract import physical
from cromss.data.footprints import MOST, Footprints, footprints, nearest, on_ellipsoid, shared_ground
from cromss.data.patch import Patch
from cromss.data.store import PatchStore, StoreWriter

SIZE = (16, 16)
UTM = "EPSG:32633"


def tiles(*corners, crs=UTM, pixel=10.0, size=SIZE) -> Footprints:
    """Tiles of square pixels, named by number, with their north-western corner there."""
    transform = np.array([(pixel, 0, x, 0, -pixel, y) for x, y in corners], float).reshape(-1, 6)
    return Footprints.of([str(i) for i in range(len(corners))], [crs] * len(corners), transform, size)


def pairs(one, other):
    return [(int(a), int(b)) for a, b in shared_ground(one, other)]


def test_a_tile_shares_ground_with_the_one_it_overlaps_not_with_those_it_touches():
    here = tiles((500000, 5300000))
    around = tiles((500160, 5300000), (499840, 5300000), (500000, 5300160), (500000, 5299840))
    assert pairs(here, around) == []
    assert pairs(here, tiles((700000, 5300000), (500150, 5300150))) == [(0, 1)]


@given(st.integers(-40, 40), st.integers(-40, 40), st.sampled_from([(16, 16), (32, 32), (8, 24)]))
def test_shifted_by_whole_pixels_tiles_share_ground_exactly_while_their_rectangles_do(columns, rows, size):
    """Oracle: rectangles in pixel units."""
    other = tiles((500000 + 10 * columns, 5300000 - 10 * rows), size=size)
    wanted = -size[1] < columns < 16 and -size[0] < rows < 16
    assert bool(pairs(tiles((500000, 5300000)), other)) == wanted


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32632", "EPSG:3035"])
def test_the_same_ground_is_recognised_in_another_coordinate_system(crs):
    pixel = 10 / 111_000 if crs == "EPSG:4326" else 10.0
    (x, far), (y, _) = reproject(UTM, crs, [500000, 500400], [5300000, 5300000])
    assert pairs(tiles((500000, 5300000)), tiles((x, y), crs=crs, pixel=pixel)) == [(0, 0)]
    assert pairs(tiles((500000, 5300000)), tiles((far, y), crs=crs, pixel=pixel)) == []


def test_a_tile_on_the_date_line_finds_its_partner_in_the_next_zone():
    (x,), (y,) = reproject("EPSG:4326", "EPSG:32660", [179.9999], [10.0])
    (there,), (high,) = reproject("EPSG:4326", "EPSG:32601", [-179.9995], [10.0])
    east_of_it = tiles((there, high), crs="EPSG:32601")
    assert pairs(tiles((x, y), crs="EPSG:32660"), east_of_it) == [(0, 0)]
    assert pairs(tiles((x - 400, y), crs="EPSG:32660"), east_of_it) == []


def test_a_tile_that_does_not_say_where_it_lies_shares_nothing():
    assert len(tiles((500000, 5300000), crs="")) == 0
    assert pairs(tiles((500000, 5300000)), tiles((500000, 5300000), crs="")) == []


def test_tiles_without_georeference_are_counted():
    mixed = Footprints.of(
        ["a", "b", "c"], ["", UTM, "no such system"], np.tile([10.0, 0, 500000, 0, -10, 5300000], (3, 1)), SIZE
    )
    assert (mixed.ids, mixed.unplaced) == (["b"], 2)


# --- how far apart ----------------------------------------------------------------------------------------------------


def test_the_distance_of_two_tiles_is_worked_by_hand():
    """160 m tiles, straight east, straight north and on the diagonal; at the central meridian a metre of UTM is 1 / 0.9996
    metres of ground. Overlap is negative: how far one would have to move."""
    here = tiles((500000, 5300000))
    for corner, metres in (
        ((500000 + 160 + 300, 5300000), 300),
        ((500000, 5300000 + 160 + 700), 700),
        ((500000 + 160 + 300, 5300000 - 160 - 400), 500),
        ((500160, 5300000), 0),
        ((500100, 5300000), -60),
        ((500000, 5300000), -160),
    ):
        found = nearest(here, tiles(corner), 10_000)
        assert found.other.tolist() == [0]
        assert found.clearance[0] == pytest.approx(metres / 0.9996, abs=0.05)
        assert found.shared.tolist() == [metres < 0]


def test_a_buffer_ends_where_it_says():
    here, there = tiles((500000, 5300000)), tiles((501160, 5300000))  # 1000 m of UTM, 1000.4 m of ground
    assert nearest(here, there, 1000).other.tolist() == [-1]
    assert nearest(here, there, 1000.5).other.tolist() == [0]
    assert np.isinf(nearest(here, there, 1000).clearance[0])


def test_the_nearest_is_found_in_the_next_zone():
    """On the border of two UTM zones at 48 N: the gap along the parallel, and a partner of the own zone farther off."""
    (west,), (top,) = reproject("EPSG:4326", UTM, [18.0], [48.0])
    (east,), (high,) = reproject("EPSG:4326", "EPSG:32634", [18.0], [48.0])
    here = tiles((west - 160, top))
    others = Footprints.of(
        ["own zone", "next zone"], [UTM, "EPSG:32634"],
        np.array([(10, 0, west - 160, 0, -10, top + 160 + 800), (10, 0, east + 500, 0, -10, high)], float), SIZE,
    )  # fmt: skip
    found = nearest(here, others, 2000)
    assert found.other.tolist() == [1]
    assert found.clearance[0] == pytest.approx(500, abs=5)  # the zones' grids meet at an angle of 4.5 degrees
    assert nearest(here, others, 400).other.tolist() == [-1]


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 500.0, 3000.0]))
def test_the_search_tree_finds_what_comparing_all_with_all_finds(seed, within):
    """Oracle: every pair on its own, among tiles of three sizes."""
    rng = np.random.default_rng(seed)
    corner = np.array([500000, 5300000])
    one = tiles(*(corner + rng.uniform(0, 4000, (7, 2))))
    parts = [tiles(*(corner + rng.uniform(0, 4000, (5, 2))), pixel=pixel) for pixel in (5, 10, 60)]
    others = Footprints([f"{i}" for i in range(15)], np.concatenate([part.corners for part in parts]))
    found = nearest(one, others, within)
    for i in range(len(one)):
        alone = [
            nearest(Footprints(["a"], one.corners[[i]]), Footprints(["b"], others.corners[[j]]), MOST).clearance[0]
            for j in range(len(others))
        ]
        least = min(alone)
        assert found.clearance[i] == (pytest.approx(least) if least <= within else np.inf)
        assert found.other[i] == (np.argmin(alone) if least <= within else -1)


@pytest.mark.parametrize("buffer", [-1, MOST + 1, float("nan")])
def test_an_impossible_buffer_is_refused(buffer):
    with pytest.raises(ValueError, match="must be 0 to 100,000 metres"):
        nearest(tiles((500000, 5300000)), tiles((500000, 5300000)), buffer)


def test_the_ellipsoid_has_the_radii_of_wgs84():
    np.testing.assert_allclose(on_ellipsoid(np.array([0.0, 90.0]), np.array([0.0, 90.0])),
                               [[6378137, 0, 0], [0, 0, 6356752.3142]], atol=1e-3)  # fmt: skip


def test_a_store_tells_the_footprint_of_every_place_of_a_split_once(tmp_path):
    with StoreWriter(tmp_path / "store", scheme="dynamic-world", bands={"s1": ("VV", "VH")}, size=SIZE) as writer:
        for place, split in enumerate(["train", "train", "test"]):
            writer.add([_patch(place, season) for season in range(2)], split, 0)
    store = PatchStore.open(tmp_path / "store")
    found = footprints(store, ("train",))
    assert sorted(name[0] for name in found.ids) == ["0", "1"]
    assert np.linalg.norm(np.subtract(*found.centres)) == pytest.approx(320 / 0.9996, abs=0.05)  # UTM's scale
    assert len(footprints(store, ("train", "test"))) == 3
    assert len(footprints(store, ("validation",))) == 0
    assert [(a[0], b[0]) for a, b in shared_ground(footprints(store, ("test",)), tiles((500640, 5300000)))] == [
        ("2", "0")
    ]


def _patch(place, season):
    return Patch(
        patch_id=f"{place}/{season}",
        location_id=str(place),
        acquisition=str(season),
        images={"s1": np.full((2, *SIZE), -10, np.float32)},
        contracts={"s1": physical("s1", ("VV", "VH"))},
        label=np.zeros(SIZE, np.uint8),
        crs=UTM,
        transform=(10.0, 0.0, 500000.0 + 320 * place, 0.0, -10.0, 5300000.0),
    )
