"""STAC: items become acquisitions, what they say of their bands counts, and no href leads out of the folder."""

import json
import pickle
import re
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pystac
import pytest
from rasterio.transform import Affine
from trees import GRID, classes, optical, radar, write_tif

from cromss.data.ingestion import Ingest, ingest
from cromss.data.patch import Patch
from cromss.data.sources import layers, stac
from cromss.data.sources.base import Skipped
from cromss.data.sources.stac import Stac
from cromss.data.sources.stac_json import local_file
from cromss.data.store import PatchStore
from cromss.landcover import IGNORE
from cromss.sensors import SENTINEL1, SENTINEL2
from cromss.settings import validate

SIZE = (24, 24)
NINE = SENTINEL2.subsets["9"]
START = datetime(2020, 6, 1, 10, 30, 5, tzinfo=UTC)
SQUARE = {"type": "Polygon", "coordinates": [[[15, 47], [15.2, 47], [15.2, 47.1], [15, 47.1], [15, 47]]]}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


# --- generators -------------------------------------------------------------------------------------------------------


def s2_bands(names=SENTINEL2.bands, **each) -> list[dict]:
    """STAC 1.1 `bands`, every one with what `each` says (`raster__scale` = `raster:scale`)."""
    told = {key.replace("__", ":"): value for key, value in each.items()}
    return [{"name": name.replace("B", "B0", 1) if len(name) == 2 else name} | told for name in names]


S1_BANDS = [{"name": "VV"}, {"name": "VH"}]


def stac_item(
    folder: Path, name: str, seed=0, days=0.0, place="a", *, s1=True, s2=True, label=True, write=True, **said
):
    """An item and its files `<name>_{s1,s2,label}.tif` in `folder`. `said` = properties, `place` None = no property."""
    item = pystac.Item(
        id=name,
        geometry=SQUARE,
        bbox=[15, 47, 15.2, 47.1],
        datetime=START + timedelta(days=days),
        properties={**({} if place is None else {"location": place}), **said},
    )
    parts = {
        "s1": (s1, radar(SIZE, seed), S1_BANDS),
        "s2": (s2, optical(SIZE, seed), s2_bands()),
        "label": (label, classes(SIZE, seed), None),
    }
    for key, (wanted, pixels, bands) in parts.items():
        if wanted:
            if write:
                write_tif(folder / f"{name}_{key}.tif", pixels)
            fields = {"bands": bands} if bands else {}
            item.add_asset(key, pystac.Asset(f"./{name}_{key}.tif", roles=["data"], extra_fields=fields))
    item.validate()  # against the core schema that pystac brings along
    return item


def collected(folder: Path, *items: pystac.Item, name="items.json") -> Path:
    """The items as a FeatureCollection, hrefs as they were given."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    features = [item.to_dict(include_self_link=False, transform_hrefs=False) for item in items]
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return file


def read_all(path: Path, **options) -> dict[str, Patch | Skipped]:
    source = Stac(path=path, **options)
    found = [one for location in source.locations() for one in source.read(location)]
    return {one.patch_id if isinstance(one, Patch) else one.name: one for one in found}


def only(path: Path, **options) -> Patch | Skipped:
    (found,) = read_all(path, **options).values()
    return found


def one_item(folder: Path, s2=None, bands=None, **said) -> Path:
    """A collection of one item whose Sentinel-2 file and bands may be given."""
    item = stac_item(folder, "x", **said)
    if s2 is not None:
        write_tif(folder / "x_s2.tif", s2)
    if bands is not None:
        item.assets["s2"].extra_fields = bands if isinstance(bands, dict) else {"bands": bands}
    return collected(folder, item)


# --- finding items ----------------------------------------------------------------------------------------------------


def items_of(folder: Path) -> list[pystac.Item]:
    """Two places, the first with two dates, the later one first."""
    return [
        stac_item(folder, "late", 1, days=90),
        stac_item(folder, "early", 0),
        stac_item(folder, "other", 2, place="b", split="test"),
    ]


def as_collection(folder: Path) -> Path:
    return collected(folder, *items_of(folder))


def as_folder(folder: Path) -> Path:
    for item in items_of(folder):
        (folder / f"{item.id}.json").write_text(json.dumps(item.to_dict(include_self_link=False)))
    return folder


def as_catalogue(folder: Path) -> Path:
    """catalog.json -> scenes/collection.json -> scenes/<id>/<id>.json, imagery beside each item."""
    extent = pystac.Extent(pystac.SpatialExtent([[15, 47, 15.2, 47.1]]), pystac.TemporalExtent([[START, None]]))
    top = pystac.Catalog("top", "everything")
    scenes = pystac.Collection("scenes", "scenes", extent)
    top.add_child(scenes)
    for number, name in enumerate(("late", "early", "other")):
        below = folder / "scenes" / name
        scenes.add_item(stac_item(below, name, (1, 0, 2)[number], (90, 0, 0)[number], "aab"[number],
                                  split=("train", "train", "test")[number]))  # fmt: skip
    top.normalize_hrefs(str(folder))
    top.save(pystac.CatalogType.SELF_CONTAINED)
    assert (folder / "scenes/late/late.json").is_file()
    return folder


@pytest.mark.parametrize("make", [as_collection, as_folder, as_catalogue])
def test_items_are_acquisitions_of_their_location_in_time_order(tmp_path, make):
    found = read_all(make(tmp_path))
    assert [(name, one.split) for name, one in found.items()] == [
        ("a/20200601T103005", "train"),
        ("a/20200830T103005", "train"),
        ("b/20200601T103005", "test"),
    ]
    for seed, patch in enumerate(found.values()):
        np.testing.assert_array_equal(patch.images["s1"], radar(SIZE, seed))
        np.testing.assert_array_equal(patch.images["s2"], optical(SIZE, seed))
        np.testing.assert_array_equal(patch.label, classes(SIZE, seed))
        assert (patch.crs, patch.transform) == ("EPSG:32633", GRID[:6])  # the file's own
        assert patch.notes == {"s2_offset": "none, by B10"}


def test_a_single_item_and_the_collection_json_itself_may_be_named(tmp_path):
    folder = as_folder(tmp_path / "items")
    assert list(read_all(folder / "other.json")) == ["b/20200601T103005"]
    root = as_catalogue(tmp_path / "tree")
    assert list(read_all(root / "scenes/collection.json")) == list(read_all(root))
    linked = tmp_path / "links/link.json"
    linked.parent.mkdir()
    linked.symlink_to(root / "scenes/collection.json")
    assert list(read_all(linked)) == list(read_all(root))


@pytest.mark.parametrize(
    ("said", "geometry", "place"),
    [
        ({"grid:code": "MGRS-33UUP"}, SQUARE, "MGRS-33UUP"),
        ({"location": 17, "grid:code": "MGRS-33UUP"}, SQUARE, "17"),
        ({}, SQUARE, "47.0500N_15.1000E"),
        ({}, {"type": "Point", "coordinates": [-70.12344, -33.00006]}, "33.0001S_70.1234W"),
        # a 1 x 1 and a 1 x 3 rectangle: the centroid lies at 1/4 and 3/4 of the way between their centres
        ({}, {"type": "MultiPolygon", "coordinates": [
            [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]], [[[1, 0], [4, 0], [4, 1], [1, 1], [1, 0]]]]}, "0.5000N_2.0000E"),
    ],
)  # fmt: skip
def test_a_location_is_the_property_else_the_grid_code_else_the_centroid(tmp_path, said, geometry, place):
    item = stac_item(tmp_path, "x", place=None, **said)
    item.geometry = geometry
    assert only(collected(tmp_path, item)).location_id == place


def test_the_location_may_be_another_property(tmp_path):
    file = collected(tmp_path, stac_item(tmp_path, "x", site="fields"))
    assert only(file, location="site").location_id == "fields"


# --- assets and bands -------------------------------------------------------------------------------------------------


def test_bands_are_taken_by_the_names_that_the_item_tells(tmp_path):
    item = stac_item(tmp_path, "x")
    write_tif(tmp_path / "x_s2.tif", optical()[:, :24, :24][::-1])
    item.assets["s2"].extra_fields = {"bands": s2_bands(SENTINEL2.bands[::-1])}
    write_tif(tmp_path / "x_s1.tif", radar(SIZE)[::-1])
    item.assets["s1"].extra_fields = {"bands": S1_BANDS[::-1]}
    patch = only(collected(tmp_path, item), bands="B4,B3,B2")
    np.testing.assert_array_equal(patch.images["s2"], optical()[[3, 2, 1], :24, :24])
    np.testing.assert_array_equal(patch.images["s1"], radar(SIZE))


COMMON = {"B2": "blue", "B3": "green", "B4": "red", "B8A": "nir08", "B8": "nir", "B11": "swir16"}


@pytest.mark.parametrize("how", ["eo:common_name", "eo:bands", "name"])
def test_common_names_are_understood(tmp_path, how):
    bands = {
        "eo:common_name": {"bands": [{"name": f"x{n}", how: name} for n, name in enumerate(COMMON.values())]},
        "eo:bands": {"eo:bands": [{"name": f"x{n}", "common_name": name} for n, name in enumerate(COMMON.values())]},
        "name": {"bands": [{"name": name} for name in COMMON.values()]},
    }[how]
    file = one_item(tmp_path, optical(SIZE, bands=COMMON), bands, **{"s2:processing_baseline": "02.09"})
    patch = only(file, bands="B8A,B2")
    np.testing.assert_array_equal(patch.images["s2"], optical(SIZE, bands=COMMON)[[3, 0]])


def test_an_ambiguous_common_name_is_no_name(tmp_path):
    bands = {"eo:bands": [{"name": f"x{n}", "common_name": "rededge"} for n in range(3)]}
    file = one_item(tmp_path, optical(SIZE)[:3], bands, **{"s2:processing_baseline": "02.09"})
    assert "3 unnamed bands" in only(file, bands="B5").reason


def test_names_in_the_item_that_contradict_those_in_the_file_are_refused(tmp_path):
    item = stac_item(tmp_path, "x")
    write_tif(tmp_path / "x_s1.tif", radar(SIZE), names=["VH", "VV"])
    file = collected(tmp_path, item)
    reason = only(file).reason
    assert "the item names the bands VV,VH, x_s1.tif itself VH,VV" in reason
    np.testing.assert_array_equal(only(file, s1_order="VV,VH").images["s1"], radar(SIZE))


def per_band_item(folder: Path) -> pystac.Item:
    """An asset a band, named by its bands or its key, all of the role `reflectance`, coarse ones at native size."""
    item = stac_item(folder, "x", s1=False, s2=False)
    for number, band in enumerate(SENTINEL2.bands):
        side = 12 if band in ("B5", "B6", "B7", "B8A", "B11", "B12") else 24
        grid = GRID * Affine.scale(24 / side)
        write_tif(folder / f"{band}.tif", optical((side, side), number, bands=[band]), transform=grid)
        fields = {"bands": s2_bands([band])} if number % 2 else {}
        item.add_asset(band, pystac.Asset(f"{band}.tif", roles=["data", "reflectance"], extra_fields=fields))
    write_tif(folder / "scl.tif", classes(SIZE))
    item.add_asset("scl", pystac.Asset("scl.tif", roles=["reflectance"]))  # no band of the sensor
    for index, key in ((1, "vh"), (0, "vv")):
        write_tif(folder / f"{key}.tif", radar(SIZE)[index])
        item.add_asset(key, pystac.Asset(f"{key}.tif", roles=["amplitude"]))
    return item


def test_assets_of_one_role_are_the_bands_of_one_image(tmp_path):
    file = collected(tmp_path, per_band_item(tmp_path))
    patch = only(file, s1_asset="amplitude", s2_asset="reflectance")
    np.testing.assert_array_equal(patch.images["s1"], radar(SIZE))
    for number, band in enumerate(SENTINEL2.bands):
        stored = optical((12, 12) if band in ("B5", "B6", "B7", "B8A", "B11", "B12") else SIZE, number, bands=[band])[0]
        if stored.shape == SIZE:
            np.testing.assert_array_equal(patch.images["s2"][number], stored)
        else:
            centres = patch.images["s2"][number].reshape(12, 2, 12, 2).mean((1, 3))
            assert np.corrcoef(centres.ravel(), stored.ravel())[0, 1] > 0.8, band
    assert "leave out --s1-order" in only(file, s1_asset="amplitude", s2_asset="reflectance", s1_order="VH,VV").reason


def test_other_keys_and_roles_go_by_option(tmp_path):
    item = stac_item(tmp_path, "x")
    item.assets = {"grd": item.assets["s1"], "l1c": item.assets["s2"], "lulc": item.assets["label"]}
    item.assets["lulc"].roles = ["truth"]
    file = collected(tmp_path, item)
    assert isinstance(only(file, s1_asset="grd", s2_asset="l1c", label_asset="truth"), Patch)
    assert only(file).reason == "no item has a Sentinel-2 asset of the key or role 's2'; see --s2-asset"
    assert "of the key or role 's1'; see --s1-asset" in only(file, s2_asset="l1c").reason
    assert only(file, s1_asset="grd", s2_asset="l1c").reason == "label: no asset"


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "bands", "stored_offset", "note"),
    [
        ({}, s2_bands(NINE, raster__scale=1e-4, raster__offset=-0.1), 1000, "1000 removed, by raster:offset"),
        ({}, s2_bands(NINE, raster__scale=1e-4, raster__offset=0), 0, "none, by raster:offset"),
        ({}, s2_bands(NINE, raster__scale=1, raster__offset=-1000), 1000, "1000 removed, by raster:offset"),
        ({"processing:baseline": "05.09"}, s2_bands(NINE), 1000, "1000 removed, by baseline 05.09"),
        ({"s2:processing_baseline": 2.14}, s2_bands(NINE), 0, "none, by baseline 02.14"),
        ({"s2:processing_baseline": "04.00"}, s2_bands(NINE, raster__scale=1e-4, raster__offset=-0.1), 1000,
         "1000 removed, by raster:offset and baseline 04.00"),
        ({"s2:processing_baseline": "04.00", "earthsearch:boa_offset_applied": True}, s2_bands(NINE), 0,
         "none, by earthsearch:boa_offset_applied"),
        ({"s2:product_uri": "S2A_MSIL1C_20220125T125311_N0400_R052_T24KVE_20220125T160613.SAFE"}, s2_bands(NINE), 1000,
         "1000 removed, by baseline 04.00"),
    ],
)  # fmt: skip
def test_the_offset_is_removed_by_whatever_tells_it(tmp_path, said, bands, stored_offset, note):
    patch = only(one_item(tmp_path, optical(SIZE, 0, stored_offset, NINE), bands, **said), bands="9")
    np.testing.assert_array_equal(patch.images["s2"], optical(SIZE, 0, 0, NINE))
    assert patch.notes["s2_offset"] == note


def test_stac_1_0_tells_scale_and_offset_in_raster_bands(tmp_path):
    eo = [{"name": band} for band in NINE]
    bands = {"eo:bands": eo, "raster:bands": [{"scale": 1e-4, "offset": -0.1, "nodata": 0}] * 9}
    patch = only(one_item(tmp_path, optical(SIZE, 0, 1000, NINE), bands), bands="9")
    np.testing.assert_array_equal(patch.images["s2"], optical(SIZE, 0, 0, NINE))


@pytest.mark.parametrize(
    ("said", "bands", "reason"),
    [
        ({"s2:processing_baseline": "04.00"}, s2_bands(NINE, raster__scale=1e-4, raster__offset=0),
         r"raster:offset \(0\) and baseline 04.00 \(1000\) disagree about the \+1000 offset; state it with --offset"),
        ({"earthsearch:boa_offset_applied": True}, s2_bands(NINE, raster__scale=1e-4, raster__offset=-0.1),
         r"raster:offset \(1000\) and earthsearch:boa_offset_applied \(0\) disagree"),
        ({}, s2_bands(NINE), "neither raster:offset nor a processing baseline nor B10 tell the"),
        ({"s2:processing_baseline": "99.99"}, s2_bands(NINE), "neither raster:offset nor"),
        ({}, s2_bands(NINE, raster__scale=1e-4), "neither raster:offset nor"),  # the offset's default is no word of it
        ({}, s2_bands(NINE, raster__scale=1, raster__offset=0), "neither raster:offset nor"),
    ],
)  # fmt: skip
def test_what_contradicts_or_keeps_silent_about_the_offset_needs_a_word(tmp_path, said, bands, reason):
    file = one_item(tmp_path, optical(SIZE, 0, 1000, NINE), bands, **said)
    assert re.search(reason, only(file, bands="9").reason), only(file, bands="9").reason
    patch = only(file, bands="9", offset="1000")
    np.testing.assert_array_equal(patch.images["s2"], optical(SIZE, 0, 0, NINE))
    assert patch.notes["s2_offset"] == "1000 removed, stated"


def test_b10_has_a_say_beside_what_the_item_tells(tmp_path):
    bands = s2_bands(raster__scale=1e-4, raster__offset=-0.1)
    patch = only(one_item(tmp_path / "agree", optical(SIZE, 0, 1000), bands))
    assert patch.notes["s2_offset"] == "1000 removed, by raster:offset and B10"
    assert "raster:offset (1000) and B10 (0) disagree" in only(one_item(tmp_path / "not", optical(SIZE), bands)).reason


def test_other_scales_become_dn_and_gaps_stay_gaps(tmp_path):
    """DN 2x + 100 from reflectance 2e-4 x + 0.01."""
    stored = optical(SIZE, 0, 0, NINE) // 2
    stored[:, :3] = 7
    bands = s2_bands(NINE, raster__scale=2e-4, raster__offset=0.01, nodata=7)
    patch = only(one_item(tmp_path, stored, bands, **{"s2:processing_baseline": "05.00"}), bands="9")
    np.testing.assert_allclose(patch.images["s2"][:, 3:], 2.0 * stored[:, 3:] + 100, rtol=1e-5)
    assert not patch.valid[:3].any()
    assert patch.valid[3:].all()
    assert patch.notes["s2_scale"] == "reflectance by raster:scale and raster:offset, times 10000"
    assert patch.notes["s2_offset"] == "none, by raster:scale and raster:offset"


@pytest.mark.parametrize(
    ("bands", "reason"),
    [
        (s2_bands(NINE, raster__offset=-3), "scale 1 and offset -3.0 give neither reflectance nor DN"),
        ([*s2_bands(NINE[:8], raster__scale=1e-4), *s2_bands(NINE[8:])], "scale and offset of some bands only"),
        (s2_bands(NINE, raster__scale=0), "an asset has the scale 0.0"),
        (s2_bands(NINE, raster__scale="wide"), "could not convert string to float"),
        (s2_bands(NINE[:4]), "the item describes 4 bands, x_s2.tif has 9"),
        ({"eo:bands": s2_bands(NINE), "raster:bands": [{}] * 3}, "an asset describes 9 and 3 bands at once"),
        ([{"name": f"B{n}", "eo:common_name": "blue"} for n in range(1, 10)], "a band 'B1' of the common name 'blue'"),
        ({"bands": {"name": "B1"}}, "an asset's bands are no list of objects"),
        ({"bands": [7]}, "an asset's bands are no list of objects"),
        ([*s2_bands(NINE[:8], nodata=0), *s2_bands(NINE[8:], nodata=9)], "nodata is 0.0 and 9.0 at once"),
    ],
)
def test_bands_that_make_no_sense_are_named(tmp_path, bands, reason):
    file = one_item(tmp_path, optical(SIZE, 0, 0, NINE), bands, **{"s2:processing_baseline": "02.00"})
    assert reason in only(file, bands="9").reason


def test_nodata_comes_from_the_item_where_the_file_is_silent(tmp_path):
    label, s2 = classes(SIZE).astype(np.int16), optical(SIZE)
    label[0], s2[:, 5] = 77, 65535
    item = stac_item(tmp_path, "x")
    write_tif(tmp_path / "x_label.tif", label)
    write_tif(tmp_path / "x_s2.tif", s2)
    item.assets["label"].extra_fields = {"nodata": 77}
    item.assets["s2"].extra_fields = {"bands": s2_bands(), "nodata": 65535}
    patch = only(collected(tmp_path, item))
    assert (patch.label[0] == IGNORE).all()
    np.testing.assert_array_equal(patch.valid, (s2 != 65535).all(0))
    write_tif(tmp_path / "x_s2.tif", s2, nodata=0)
    assert "s2: nodata is 0.0 and 65535.0 at once" in only(tmp_path / "items.json").reason


@pytest.mark.parametrize("unit", ["linear", "1", "dB", "amplitude"])
def test_sentinel1_is_converted_by_the_unit_that_the_item_tells(tmp_path, unit):
    power = 10 ** (radar(SIZE).astype(np.float64) / 10)
    item = stac_item(tmp_path, "x")
    if unit != "dB":
        write_tif(tmp_path / "x_s1.tif", power)
    item.assets["s1"].extra_fields = {"bands": [band | {"unit": unit} for band in S1_BANDS]}
    found = only(collected(tmp_path, item))
    if unit == "amplitude":
        assert "amplitude, neither dB nor linear power; state it with --s1-unit" in found.reason
        found = only(tmp_path / "items.json", s1_unit="linear")
    np.testing.assert_allclose(found.images["s1"], radar(SIZE), atol=1e-4)
    assert found.notes.get("s1") == (None if unit == "dB" else "linear power to dB")


def test_what_an_asset_tells_without_bands_counts_for_all_of_them(tmp_path):
    item = stac_item(tmp_path, "x")
    write_tif(tmp_path / "x_s1.tif", 10 ** (radar(SIZE)[::-1].astype(np.float64) / 10), names=["VH", "VV"])
    item.assets["s1"].extra_fields = {"unit": "linear"}
    write_tif(tmp_path / "x_s2.tif", optical(SIZE, 0, 1000, NINE), names=NINE)
    item.assets["s2"].extra_fields = {"raster:scale": 1e-4, "raster:offset": -0.1}
    patch = only(collected(tmp_path, item), bands="9")
    np.testing.assert_allclose(patch.images["s1"], radar(SIZE), atol=1e-4)
    np.testing.assert_array_equal(patch.images["s2"], optical(SIZE, 0, 0, NINE))


def test_scaled_decibels_are_unscaled(tmp_path):
    item = stac_item(tmp_path, "x")
    write_tif(tmp_path / "x_s1.tif", np.rint(radar(SIZE) * 100).astype(np.int16))
    told = {"unit": "dB", "raster:scale": 0.01}
    item.assets["s1"].extra_fields = {"bands": [band | told for band in S1_BANDS]}
    patch = only(collected(tmp_path, item))
    np.testing.assert_allclose(patch.images["s1"], radar(SIZE), atol=0.006)
    assert patch.notes["s1_scale"] == "by raster:scale and raster:offset"


@pytest.mark.parametrize(
    "said",
    [
        {"processing:level": "L2A"},
        {"s2:product_type": "S2MSI2A"},
        {"s2:product_uri": "S2A_MSIL2A_20200601T103005_N0214_R108_T33UUP_20200601T133005.SAFE"},
    ],
)
def test_l2a_is_refused_until_it_is_asked_for(tmp_path, said):
    file = one_item(tmp_path, **said)
    assert "Sentinel-2 is L2A (surface reflectance)" in only(file).reason
    assert only(file, level="L2A-as-is").notes["s2_level"] == "L2A"
    assert (Stac(path=file).encoding, Stac(path=file, level="L2A-as-is").encoding) == ("uint8", "raw")
    assert only(one_item(tmp_path, **{"processing:level": "L1C"})).notes["s2_level"] == "L1C"


# --- pairing ----------------------------------------------------------------------------------------------------------


def test_sentinel1_of_another_item_is_paired_by_time(tmp_path):
    items = [
        stac_item(tmp_path, "optical-0", 0, 0, s1=False),
        stac_item(tmp_path, "optical-1", 1, 60, s1=False),
        stac_item(tmp_path, "optical-2", 2, 120, s1=False),
        stac_item(tmp_path, "radar-0", 10, 4, s2=False, label=False),
        stac_item(tmp_path, "radar-1", 11, 58.5, s2=False, label=False),
        stac_item(tmp_path, "radar-elsewhere", 12, 120, place="b", s2=False, label=False),
    ]
    found = read_all(collected(tmp_path, *items))
    first, second, third, elsewhere = found.values()
    np.testing.assert_array_equal(first.images["s1"], radar(SIZE, 10))
    np.testing.assert_array_equal(second.images["s1"], radar(SIZE, 11))
    assert first.notes["s1_item"] == "radar-0, 4.0 days apart"
    assert second.notes["s1_item"] == "radar-1, 1.5 days apart"
    assert third.reason == "the nearest Sentinel-1, radar-1, lies 61.5 days apart; see --max-days"
    assert elsewhere.reason == "no item has a Sentinel-2 asset of the key or role 's2'; see --s2-asset"
    assert isinstance(read_all(tmp_path / "items.json", max_days=62)["a/20200929T103005"], Patch)


def test_the_label_may_lie_in_the_item_of_sentinel1(tmp_path):
    items = [stac_item(tmp_path, "o", 0, s1=False, label=False), stac_item(tmp_path, "r", 3, 1, s2=False)]
    np.testing.assert_array_equal(only(collected(tmp_path, *items)).label, classes(SIZE, 3))


def test_items_of_one_moment_and_of_another_split_are_skipped(tmp_path):
    items = [
        stac_item(tmp_path, "p", 0),
        stac_item(tmp_path, "q", 1),
        stac_item(tmp_path, "r", 2, 9, split="test"),
    ]
    found = read_all(collected(tmp_path, *items))
    assert isinstance(found["a/20200601T103005"], Patch)
    assert found["a/20200601T103005/q"].reason == "has the location and time of p"
    assert found["a/20200610T103005"].reason == "is in split test, the location's first acquisition in train"


def test_times_are_compared_across_zones_and_start_datetime_will_do(tmp_path):
    items = [stac_item(tmp_path, "p", 0), stac_item(tmp_path, "q", 1)]
    items[0].datetime = datetime(2020, 6, 1, 23, tzinfo=UTC)
    one, two = (item.to_dict(include_self_link=False) for item in items)
    two["properties"] |= {"datetime": None, "start_datetime": "2020-06-02T00:30:00+02:00"}  # 22:30 UTC
    two["properties"]["end_datetime"] = "2020-06-03T00:00:00Z"
    (tmp_path / "i.json").write_text(json.dumps({"type": "FeatureCollection", "features": [one, two]}))
    assert list(read_all(tmp_path / "i.json")) == ["a/20200601T223000", "a/20200601T230000"]


# --- hostile hrefs ----------------------------------------------------------------------------------------------------

REMOTE = ["http://example.com/x.tif", "HTTPS://example.com/x.tif", "s3://bucket/x.tif", "//host/x.tif", "gs://b/x.tif",
          "/vsicurl/http://example.com/x.tif", "/vsizip/x.zip/x.tif", "file://host/x.tif", "ftp://x/x.tif",
          "data:image/tiff;base64,AAAA"]  # fmt: skip
OUTSIDE = ["../../../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "file:///%2e%2e/etc/passwd", "../secret.tif",
           "link/../../secret.tif", "linked.tif", "out/secret.tif", "sub/../../secret.tif",
           "\\\\host\\x.tif"]  # fmt: skip
ODD = ["x\0.tif", "loop/x.tif", ""]


@pytest.fixture
def trap(tmp_path):
    """A folder with links out of it, beside a perfectly good image that must not be read."""
    write_tif(tmp_path / "secret.tif", optical(SIZE))
    folder = tmp_path / "stac"
    folder.mkdir()
    (folder / "sub").mkdir()
    (folder / "linked.tif").symlink_to("../secret.tif")
    (folder / "out").symlink_to("..")
    (folder / "link").symlink_to("sub")
    (folder / "loop").symlink_to("loop")
    return folder


@pytest.mark.parametrize("asset", ["s1", "s2", "label"])
@pytest.mark.parametrize("href", REMOTE + OUTSIDE + ODD)
def test_an_href_that_is_no_file_below_the_folder_is_skipped_by_name_and_never_opened(trap, monkeypatch, href, asset):
    item = stac_item(trap, "x")
    item.assets[asset].href = href
    file = collected(trap, item)
    opened = []
    for module in (stac, layers):
        real = module.read_raster
        monkeypatch.setattr(
            module, "read_raster", lambda path, _real=real, **k: opened.append(path) or _real(path, **k)
        )
    found = only(file)
    assert isinstance(found, Skipped)
    assert found.reason.startswith(f"{asset}: " if href else "stac: missing")
    expected = (
        "only local files" if href in REMOTE else "leads out of" if href in OUTSIDE else "(cannot be a file|missing)"
    )
    assert re.search(expected, found.reason), found.reason
    assert all(path.resolve().is_relative_to(trap) for path in opened)


def test_files_below_the_folder_are_read_however_they_are_written(trap):
    item = stac_item(trap / "sub", "x")
    hrefs = {"s1": "link/x_s1.tif", "s2": f"file://{trap}/sub/x_s2.tif", "label": str(trap / "sub/../sub/x_label.tif")}
    for key, href in hrefs.items():
        item.assets[key].href = href
    np.testing.assert_array_equal(only(collected(trap, item)).images["s2"], optical(SIZE))


def test_a_file_url_may_be_escaped(tmp_path):
    assert local_file(f"file://{tmp_path}/a%20b.tif", tmp_path, tmp_path) == (tmp_path / "a b.tif").resolve()


@pytest.mark.parametrize(
    "href", ["http://example.com/item.json", "../outside/item.json", "/etc/passwd", "missing.json"]
)
@pytest.mark.parametrize("rel", ["item", "child"])
def test_links_that_lead_elsewhere_are_skipped_by_name(tmp_path, rel, href):
    root = as_catalogue(tmp_path / "tree")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/item.json").write_text(
        json.dumps(stac_item(tmp_path / "outside", "spy", place="spy").to_dict(include_self_link=False))
    )
    file = root / "catalog.json"
    catalogue = json.loads(file.read_text())
    catalogue["links"].append({"rel": rel, "href": href})
    file.write_text(json.dumps(catalogue))
    found = read_all(root)
    assert len(found) == 4
    assert isinstance(found[href], Skipped)


def test_catalogues_that_link_in_a_circle_end(tmp_path):
    root = as_catalogue(tmp_path)
    file = root / "scenes/collection.json"
    collection = json.loads(file.read_text())
    collection["links"] += [{"rel": "child", "href": "../catalog.json"}, {"rel": "child", "href": "./collection.json"}]
    file.write_text(json.dumps(collection))
    assert len(read_all(root)) == 3


# --- broken JSON ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["{", "", "[]", "7", '{"type": "Feature"}', "[" * 100_000, '{"type": "Nonsense"}', "\udcff", '{"type": "Catalog"}'],
)
def test_one_broken_json_in_a_folder_is_skipped_and_the_others_are_kept(tmp_path, text):
    folder = as_folder(tmp_path)
    (folder / "broken.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    found = read_all(folder)
    kept = [one for one in found.values() if isinstance(one, Patch)]
    (skipped,) = [one for one in found.values() if isinstance(one, Skipped)]
    assert len(kept) == 3
    assert skipped.name in ("broken.json", "item without id")
    assert skipped.reason
    assert "\n" not in skipped.reason


@pytest.mark.parametrize("text", ["{", '{"type": "FeatureCollection"}', '{"type": "Collection"}', "null"])
def test_a_broken_collection_is_an_error_naming_it(tmp_path, text):
    (tmp_path / "collection.json").write_text(text)
    for path in (tmp_path, tmp_path / "collection.json"):
        with pytest.raises(ValueError, match="collection.json"):
            Stac(path=path).locations()


def test_an_empty_collection_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="items.json: holds no STAC item"):
        Stac(path=collected(tmp_path)).locations()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda item: item.pop("geometry") and item["properties"].pop("location"), "tells no place"),
        (lambda item: item["properties"].update(location=["a"]), "its property location is ['a']"),
        (lambda item: item["properties"].update(datetime=None), "datetime is None"),
        (
            lambda item: item["properties"].update(datetime=None, start_datetime=None, end_datetime=None),
            "has no datetime",
        ),
        (lambda item: item["properties"].update(datetime="soon"), "soon"),
        (lambda item: item.update(assets=7), "is no STAC item"),
        (lambda item: item.update(properties=None), "is no STAC item"),
        (lambda item: item["assets"]["s2"].pop("href"), "is no STAC item"),
        (lambda item: item["assets"].pop("s2"), "no item has a Sentinel-2 asset"),
        (lambda item: item["assets"].pop("label"), "label: no asset"),
    ],
)
def test_a_faulty_item_is_skipped_with_its_reason_and_the_others_are_kept(tmp_path, spoil, reason):
    good, bad = (stac_item(tmp_path, name, place=name).to_dict(include_self_link=False) for name in ("good", "bad"))
    spoil(bad)
    (tmp_path / "i.json").write_text(json.dumps({"type": "FeatureCollection", "features": [bad, good]}))
    found = read_all(tmp_path / "i.json")
    (skipped,) = [one for one in found.values() if isinstance(one, Skipped)]
    assert len(found) == 2
    assert skipped.name.startswith("bad")
    assert reason in skipped.reason


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "x_s2.tif").unlink(), "x_s2.tif: missing"),
        (lambda folder: (folder / "x_s2.tif").write_bytes(b"II*\0"), "x_s2.tif: not a readable GeoTIFF"),
        (lambda folder: (folder / "x_s1.tif").write_text("<VRTDataset/>"), "x_s1.tif: not a readable GeoTIFF"),
        (lambda folder: write_tif(folder / "x_label.tif", np.stack([classes(SIZE)] * 2)), "x_label.tif: 2 bands"),
        (lambda folder: write_tif(folder / "x_s1.tif", radar(SIZE)[:1]), "the item describes 2 bands, x_s1.tif has 1"),
    ],
)
def test_faulty_files_are_named(tmp_path, spoil, reason):
    file = one_item(tmp_path)
    spoil(tmp_path)
    assert reason in only(file).reason


def test_position_comes_from_the_file_not_from_the_item(tmp_path):
    patch = only(one_item(tmp_path, **{"proj:code": "EPSG:4326", "proj:transform": [1, 0, 0, 0, 1, 0]}))
    assert (patch.crs, patch.transform) == ("EPSG:32633", GRID[:6])


def test_settings_are_checked_by_name():
    for wrong, message in (({"max_days": -1}, "max_days=-1: must lie in"), ({"scheme": "dynamic"}, "did you mean")):
        with pytest.raises(ValueError, match=message):
            validate(Stac, {"path": "x"}, wrong)


# --- end to end -------------------------------------------------------------------------------------------------------


def test_locations_travel_to_other_processes(tmp_path):
    locations = Stac(path=as_collection(tmp_path)).locations()
    assert pickle.loads(pickle.dumps(locations)) == locations  # noqa: S301 - our own


def test_what_is_ingested_reads_back_equal(tmp_path):
    file = collected(tmp_path, *items_of(tmp_path))
    summary = ingest(Stac(path=file), tmp_path / "store", Ingest(encoding="raw"))
    assert (summary.patches, summary.skipped) == (3, [])
    store = PatchStore.open(tmp_path / "store")
    found = read_all(file)
    assert store.manifest.places == {"test": 1, "train": 1}
    for patch in store.sample(3):
        for modality in (SENTINEL1.name, SENTINEL2.name):
            np.testing.assert_array_equal(patch.images[modality], found[patch.patch_id].images[modality])
        np.testing.assert_array_equal(patch.label, found[patch.patch_id].label)
