"""SSL4EO-S12 v1.1: the right season of the right sample, on the label's ground, and no archive is trusted."""

import json
import pickle
import re
import shutil
import struct
import sys
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import rasterio.warp
from rasterio.transform import Affine
from trees import classes, optical, radar, write_tif

from cromss.data import zarr_zip
from cromss.data.ingestion import ingest
from cromss.data.patch import Patch
from cromss.data.sources.base import Skipped
from cromss.data.sources.ssl4eo_v11 import Ssl4eoV11
from cromss.data.store import PatchStore
from cromss.data.zarr_zip import ZarrZip
from cromss.landcover import IGNORE
from cromss.sensors import SENTINEL1, SENTINEL2

zarr = pytest.importorskip("zarr", reason="needs the optional library zarr")

SIDE = 24
DATES = ("20200120", "20200420", "20200720", "20201020")
# as in the release: by name, so that S1A's winter stands before S1B's spring; each a few days after the optical image
RADAR = tuple(
    f"S1{of}_IW_GRDH_1SDV_2020{month}25T" for of, month in (("A", "01"), ("A", "10"), ("B", "04"), ("B", "07"))
)
_TIME_OF_RADAR = (0, 3, 1, 2)  # the season that each of them shows
UTM = "EPSG:32633"
CORNER = (500_000.0, 5_300_000.0)


def product(season: int) -> str:
    return f"{DATES[season]}T100031_{DATES[season]}T100204_T33UVP"


def place_of(sample: int) -> Affine:
    """Where a sample lies, in UTM 33N."""
    return Affine(10, 0, CORNER[0] + 3000 * sample, 0, -10, CORNER[1])


def write_zarr(path, arrays: dict, attributes=None, compressor="lz4", chunks=None) -> None:
    """A zarr v2 group in a zip, by the zarr library. `arrays` maps names to arrays."""
    from numcodecs import Blosc

    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    codec = Blosc(cname=compressor) if compressor else None
    with zarr.storage.ZipStore(path, mode="w") as store:
        group = zarr.create_group(store, zarr_format=2)
        for name, values in arrays.items():
            # one chunk a date, of all samples, as in the release
            cut = (len(values), 1, *values.shape[2:]) if name in ("bands", "cloud_mask") else values.shape
            given = {"chunks": chunks or cut, "compressors": codec, "attributes": (attributes or {}).get(name)}
            group.create_array(name, shape=values.shape, dtype=values.dtype, **given)[...] = values


def archive(samples, modality: str) -> dict:
    """The arrays of one file of the release."""
    seasons = range(len(DATES))
    if modality == "S1GRD":
        shown = _TIME_OF_RADAR
        bands = np.stack([[radar((SIDE, SIDE), 10 * s + t) for t in shown] for s in samples]).astype(np.float16)
        names, files = SENTINEL1.bands, [[f"{name}060646_0_0_0" for name in RADAR]] * len(samples)
        # sorted dates beside unsorted images, as the release has them
        times = [[np.datetime64(f"{d[:4]}-{d[4:6]}-25T06:06:46") for d in DATES]] * len(samples)
    else:
        bands = np.stack([[optical((SIDE, SIDE), 10 * s + t, offset=1000) for t in seasons] for s in samples]).astype(
            np.int16
        )
        names, files = (
            [b.replace("B", "B0") if len(b) == 2 else b for b in SENTINEL2.bands],
            [[product(t) for t in seasons]] * len(samples),
        )
        times = [[np.datetime64(f"{d[:4]}-{d[4:6]}-{d[6:]}T10:00:31") for d in DATES]] * len(samples)
    step = np.arange(SIDE) + 0.5
    corners = [place_of(sample) for sample in samples]
    middles = [grid * (SIDE / 2, SIDE / 2) for grid in corners]
    centres = [rasterio.warp.transform(UTM, "EPSG:4326", [x], [y]) for x, y in middles]
    arrays = {
        "bands": bands,
        "band": np.array([name.lower() if modality == "S1GRD" else name for name in names]),
        "sample": np.array([f"{sample:07d}" for sample in samples]),
        "time": np.arange(len(DATES)),
        "file_id": np.array(files),
        "time_": np.array(times).astype("datetime64[ns]").astype(np.int64),
        "crs": np.full(len(samples), 32633),
        "x_": np.stack([grid.c + 10 * step for grid in corners]),
        "y_": np.stack([grid.f - 10 * step for grid in corners]),
        "center_lon": np.array([lon for (lon,), _ in centres]),
        "center_lat": np.array([lat for _, (lat,) in centres]),
    }
    return arrays if modality == "S1GRD" else arrays | {"cloud_mask": np.zeros((len(samples), 4, SIDE, SIDE), np.uint8)}


TIMES = {"time_": {"units": "nanoseconds since 1970-01-01", "calendar": "proleptic_gregorian"}}


def v11_tree(root, train=((4, 1), (9,)), val=((2,),), change=None, **options):
    """The release's tree with labels on the images' own grid. `change` = a function of (modality, arrays), in place."""
    for part, files in (("train", train), ("val", val)):
        for number, samples in enumerate(files, 1):
            for modality in ("S1GRD", "S2L1C"):
                arrays = archive(samples, modality)
                if change:
                    change(modality, arrays)
                name = f"ssl4eos12_{part}_seasonal_data_{number:06d}.zarr.zip"
                write_zarr(root / part / modality / name, arrays, TIMES, **options)
            for sample in samples:
                for season in range(len(DATES)):
                    write_label(root, sample, season)
    return root


def write_label(root, sample: int, season: int, folder=None, **georeference):
    file = root / "dw_noisy_labels" / f"{sample:07d}" / (folder or product(season)) / "label.tif"
    georeference = {"crs": UTM, "transform": place_of(sample)} | georeference
    return write_tif(file, classes((SIDE, SIDE), 10 * sample + season), **georeference)


def one_file(tmp_path, **options):
    """A tree of one sample, 4."""
    return v11_tree(tmp_path / "tree", train=((4,),), val=(), **options)


def optical_file(root):
    return next((root / "train/S2L1C").iterdir())


def radar_file(root):
    return next((root / "train/S1GRD").iterdir())


def read_all(source) -> dict[str, Patch | Skipped]:
    found = [one for location in source.locations() for one in source.read(location)]
    return {one.patch_id if isinstance(one, Patch) else one.name: one for one in found}


# --- what is in the files is in the patches ---------------------------------------------------------------------------


def test_every_season_of_every_sample_is_read_pixel_by_pixel(tmp_path):
    found = read_all(Ssl4eoV11(path=v11_tree(tmp_path)))
    assert list(found) == [f"{sample:07d}/{product(season)}" for sample in (1, 2, 4, 9) for season in range(4)]
    for (sample, season), patch in zip(np.ndindex(4, 4), found.values(), strict=True):
        seed = 10 * (1, 2, 4, 9)[sample] + season
        # the radar of the same season, wherever its name put it; the offset gone
        np.testing.assert_array_equal(patch.images["s1"], radar((SIDE, SIDE), seed).astype(np.float16))
        np.testing.assert_array_equal(patch.images["s2"], optical((SIDE, SIDE), seed))
        np.testing.assert_array_equal(patch.label, classes((SIDE, SIDE), seed))
        assert (patch.split, patch.crs, patch.transform) == ("train", UTM, place_of((1, 2, 4, 9)[sample])[:6])
        assert patch.notes == {"s2_offset": "1000 removed, by B10"}
        assert (patch.valid, patch.images["s1"].dtype) == (None, np.float32)


def test_samples_are_found_by_their_id_whatever_their_order_in_either_file(tmp_path):
    def reverse(modality, arrays):
        if modality == "S1GRD":
            for name in set(arrays) - {"band", "time"}:
                arrays[name] = arrays[name][::-1]

    found = read_all(Ssl4eoV11(path=v11_tree(tmp_path, change=reverse)))
    for name, patch in found.items():
        seed = 10 * int(patch.location_id) + [product(season) for season in range(4)].index(patch.acquisition)
        np.testing.assert_array_equal(patch.images["s1"], radar((SIDE, SIDE), seed).astype(np.float16), name)
        np.testing.assert_array_equal(patch.images["s2"], optical((SIDE, SIDE), seed), name)


@pytest.mark.parametrize(("part", "samples"), [("train", {1, 4, 9}), ("val", {2})])
def test_one_part_can_be_chosen(tmp_path, part, samples):
    source = Ssl4eoV11(path=v11_tree(tmp_path), part=part)
    assert {int(location.id) for location in source.locations()} == samples


def test_bands_are_kept_by_name_and_the_offset_is_still_told_by_b10(tmp_path):
    for patch in read_all(Ssl4eoV11(path=one_file(tmp_path), bands="B4,B3,B2")).values():
        season = [product(number) for number in range(4)].index(patch.acquisition)
        wanted = SENTINEL2.indices(["B4", "B3", "B2"])
        np.testing.assert_array_equal(patch.images["s2"], optical((SIDE, SIDE), 40 + season)[wanted])


def test_a_copy_whose_offset_was_removed_is_read_as_it_is(tmp_path):
    def removed(modality, arrays):
        if modality == "S2L1C":
            arrays["bands"] -= 1000

    patch = read_all(Ssl4eoV11(path=one_file(tmp_path, change=removed)))["0000004/" + product(0)]
    np.testing.assert_array_equal(patch.images["s2"], optical((SIDE, SIDE), 40))
    assert patch.notes == {"s2_offset": "none, by B10"}


def test_surface_reflectance_is_refused_rather_than_called_l1c(tmp_path):
    with pytest.raises(ValueError, match="would be scaled and named as what it is not. Read --level L1C"):
        Ssl4eoV11(path=tmp_path, level="L2A")


def test_gaps_are_no_data_and_clouds_are(tmp_path):
    def gaps(modality, arrays):
        if modality == "S2L1C":
            arrays["bands"][0, 0, :, :3] = 1000  # filled with 0, then + 1000
            arrays["cloud_mask"][0, 0, 3:5] = 6
            arrays["cloud_mask"][0, 0, 5:] = np.arange(SIDE) % 6
        else:
            arrays["bands"][0, 0, 1, 5:7] = np.nan

    valid = read_all(Ssl4eoV11(path=one_file(tmp_path, change=gaps)))["0000004/" + product(0)].valid
    assert not valid[:7].any()
    assert valid[7:].all()


def test_a_store_of_it_holds_what_was_read(tmp_path):
    source = Ssl4eoV11(path=v11_tree(tmp_path / "tree"))
    ingest(source, tmp_path / "store")
    expected = read_all(source)
    found = PatchStore.open(tmp_path / "store").sample(10)
    assert len(found) == 4
    for patch in found:
        one = expected[patch.patch_id]
        np.testing.assert_array_equal(patch.label, one.label)
        assert (patch.crs, patch.transform) == (one.crs, one.transform)
        for name, sensor in (("s1", SENTINEL1), ("s2", SENTINEL2)):
            _, width = sensor.interval(sensor.bands)
            low, high = sensor.decode(np.uint8([[[0]]]), sensor.bands), sensor.decode(np.uint8([[[255]]]), sensor.bands)
            apart = np.abs(patch.images[name] - np.clip(one.images[name], low, high))
            assert (apart <= 1.01 * width[:, None, None] / 255).all()  # a step of the 8-bit code


# --- which label ------------------------------------------------------------------------------------------------------


def test_labels_of_other_products_pair_by_date(tmp_path):
    root = one_file(tmp_path)
    labels = root / "dw_noisy_labels/0000004"
    for season in range(4):
        (labels / product(season)).rename(labels / product(season).replace("T33UVP", "T33UWP"))
    found = read_all(Ssl4eoV11(path=root))
    assert [one.acquisition for one in found.values()] == [product(s).replace("T33UVP", "T33UWP") for s in range(4)]
    for season, patch in enumerate(found.values()):
        np.testing.assert_array_equal(patch.label, classes((SIDE, SIDE), 40 + season))


def test_two_products_of_a_date_are_told_apart_by_the_whole_name_or_not_at_all(tmp_path):
    root = one_file(tmp_path)
    labels = root / "dw_noisy_labels/0000004"
    shutil.copytree(labels / product(0), labels / product(0).replace("T33UVP", "T33UUP"))
    assert all(isinstance(one, Patch) for one in read_all(Ssl4eoV11(path=root)).values())
    (labels / product(0)).rename(labels / product(0).replace("T33UVP", "T33UWP"))
    reasons = [one.reason for one in read_all(Ssl4eoV11(path=root)).values() if isinstance(one, Skipped)]
    assert reasons == ["no label: 0000004/ has no product of 20200120, or several"]


def test_one_label_is_not_given_to_two_images(tmp_path):
    def same_day(modality, arrays):
        if modality == "S2L1C":
            arrays["file_id"][0, 1] = product(0).replace("T100031", "T100032")

    found = read_all(Ssl4eoV11(path=one_file(tmp_path, change=same_day)))
    assert [type(one) for one in found.values()] == [Skipped, Skipped, Patch, Patch]


def test_a_label_of_another_date_is_not_used(tmp_path):
    root = one_file(tmp_path)
    labels = root / "dw_noisy_labels/0000004"
    (labels / product(1)).rename(labels / product(1).replace("20200420", "20200422"))
    found = read_all(Ssl4eoV11(path=root))
    assert [type(one) for one in found.values()] == [Patch, Skipped, Patch, Patch]
    assert "no product of 20200420" in found["0000004/" + product(1)].reason


def test_without_dates_labels_pair_by_order_and_their_number_must_fit(tmp_path):
    root = one_file(tmp_path)
    labels = root / "dw_noisy_labels/0000004"
    for season in range(4):
        (labels / product(season)).rename(labels / f"season{season}")
    for season, patch in enumerate(read_all(Ssl4eoV11(path=root)).values()):
        assert patch.acquisition == f"season{season}"
        np.testing.assert_array_equal(patch.label, classes((SIDE, SIDE), 40 + season))
    shutil.rmtree(labels / "season3")
    (skipped,) = read_all(Ssl4eoV11(path=root)).values()
    assert skipped.reason == "seasons do not pair: 3 labels, 4 images, not all with a date"


@pytest.mark.parametrize(
    ("units", "scale"), [("nanoseconds since 1970-01-01", 1), ("seconds since 1970-01-01 00:00:00", 10**9),
                         ("days since 1970-01-01", 86400 * 10**9)]
)  # fmt: skip
def test_without_product_names_the_time_of_the_images_decides(tmp_path, units, scale, monkeypatch):
    def unnamed(modality, arrays):
        if modality == "S2L1C":
            order = [2, 0, 3, 1]
            del arrays["file_id"]
            for name in ("bands", "time_", "cloud_mask"):
                arrays[name] = arrays[name][:, order]
        arrays["time_"] //= scale

    monkeypatch.setitem(TIMES["time_"], "units", units)
    found = read_all(Ssl4eoV11(path=one_file(tmp_path, change=unnamed)))
    assert [one.acquisition for one in found.values()] == [product(season) for season in range(4)]
    for season, patch in enumerate(found.values()):
        np.testing.assert_array_equal(patch.images["s2"], optical((SIDE, SIDE), 40 + season))
        np.testing.assert_array_equal(patch.label, classes((SIDE, SIDE), 40 + season))


@pytest.mark.parametrize("header", ["id,sub1,sub2\n", ""], ids=["header", "bare"])
def test_a_csv_chooses_samples_and_seasons(tmp_path, header):
    root = v11_tree(tmp_path)
    (root / "dw_complete_ids.csv").write_text(
        f"{header}9,{product(2)},{product(0)}\n77,{product(2)}\n1,2030,{product(1)}\n"
    )
    found = read_all(Ssl4eoV11(path=root))
    assert {name: type(one) for name, one in found.items()} == {
        f"0000001/{product(1)}": Patch,
        "0000001/2030": Skipped,
        f"0000009/{product(0)}": Patch,
        f"0000009/{product(2)}": Patch,
    }


def test_a_sample_of_the_csv_without_labels_is_named(tmp_path):
    root = one_file(tmp_path)
    (root / "dw_complete_ids.csv").write_text(f"4,{product(0)}\n")
    shutil.rmtree(root / "dw_noisy_labels/0000004")
    assert read_all(Ssl4eoV11(path=root)) == {"0000004": Skipped("0000004", "no label: its folder is missing")}


def test_a_label_on_the_grid_of_v1_0_is_brought_to_the_images_grid(tmp_path):
    """Oracle: the class at each pixel's centre, looked up in degrees one pixel at a time."""
    root = one_file(tmp_path)
    (west,), (north,) = rasterio.warp.transform(UTM, "EPSG:4326", [place_of(4).c + 33], [place_of(4).f - 21])
    degrees = Affine(1.4e-4, 0, west, 0, -9e-5, north)
    for season in range(4):
        write_label(root, 4, season, crs="EPSG:4326", transform=degrees)
    inside = 0
    for season, patch in enumerate(read_all(Ssl4eoV11(path=root)).values()):
        label = classes((SIDE, SIDE), 40 + season)
        for row, column in np.ndindex(SIDE, SIDE):
            east, up = place_of(4) * (column + 0.5, row + 0.5)
            (lon,), (lat,) = rasterio.warp.transform(UTM, "EPSG:4326", [east], [up])
            x, y = ~degrees * (lon, lat)
            if min(abs(x - round(x)), abs(y - round(y))) < 1e-6:
                continue  # on a border either side is right
            within = 0 <= x < SIDE and 0 <= y < SIDE
            inside += within
            assert patch.label[row, column] == (label[int(y), int(x)] if within else IGNORE)
    assert inside > 4 * 400


# --- faults -----------------------------------------------------------------------------------------------------------


def changed(modality, **arrays):
    """Arrays of one modality replaced by what functions make of them; None removes one."""

    def change(name, found):
        if name == modality:
            for key, make in arrays.items():
                found[key] = make(found[key]) if key in found and make else None
                if found[key] is None:
                    del found[key]

    return change


CHANGES = {
    "bands": (changed("S2L1C", bands=lambda b: b[:, :, :12], band=lambda b: b[:12]), "lacks B12 of the store's bands"),
    "names of bands": (changed("S2L1C", band=lambda b: b[:12]), "13 bands, 12 names of bands"),
    "no names": (changed("S2L1C", bands=lambda b: b[:, :, :12], band=None), "12 unnamed bands"),
    "seasons": (changed("S1GRD", bands=lambda b: b[:, :3], file_id=lambda f: f[:, :3]), "seasons do not pair: 3 of Sen"),
    "no seasons": (changed("S2L1C", bands=lambda b: b[:, 0]), r"bands has shape \(1, 13, 24, 24\), expected \(sample"),
    "size": (changed("S1GRD", bands=lambda b: b[..., :20], x_=lambda x: x[:, :20]), "differ in size: 24x24 and 24x20"),
    "clouds": (changed("S2L1C", cloud_mask=lambda c: c[..., :20]), "bands and cloud_mask differ in size"),
    "other sample": (changed("S1GRD", sample=lambda s: np.array(["0000005"])), "lacks sample 0000004"),
    "zone": (changed("S1GRD", crs=lambda c: c + 1), "x_ and y_ lie at 21.162"),
    "no zone": (changed("S2L1C", crs=lambda c: c * 0), "EPSG:0 is no CRS"),
    "text for a zone": (changed("S2L1C", crs=lambda c: np.array(["33N"])), "crs holds no number"),
    "uneven": (changed("S2L1C", x_=lambda x: x + np.arange(SIDE) ** 2 / 10), "x_ and y_ are not evenly spaced"),
    "no step": (changed("S2L1C", x_=lambda x: x * 0), "x_ and y_ are not evenly spaced"),
    "nan": (changed("S2L1C", y_=lambda y: y * np.nan), "x_ and y_ are not evenly spaced"),
    "fewer places": (changed("S2L1C", x_=lambda x: x[:, :20]), "x_ and y_ do not fit the pixels"),
    "elsewhere": (changed("S2L1C", center_lat=lambda lat: lat + 1), "center_lon and center_lat at"),
    "moved": (changed("S1GRD", x_=lambda x: x + 40), "s2 and s1 differ in transform"),
    "far from its label": (
        lambda modality, arrays: arrays.update(x_=arrays["x_"] + 5000, center_lon=arrays["center_lon"] + 0.067),
        "label.tif: lies elsewhere than the image",
    ),
    "silent": (lambda modality, arrays: arrays.pop("crs"), "the archive does not say where it lies"),
    "all gaps": (changed("S2L1C", bands=lambda b: b * 0 + 1000), "s2 has no pixel with data"),
    "complex": (changed("S2L1C", bands=lambda b: b.astype(np.complex64)), "holds values of type '<c8', expected numbers"),
    "text": (changed("S2L1C", bands=lambda b: b.astype("<U5")), "bands holds <U5, expected numbers"),
}  # fmt: skip


@pytest.mark.parametrize("fault", CHANGES)
def test_archives_that_do_not_fit_are_skipped_with_their_reason(tmp_path, fault):
    change, reason = CHANGES[fault]
    found = read_all(Ssl4eoV11(path=one_file(tmp_path, change=change)))
    assert found
    for one in found.values():
        assert isinstance(one, Skipped)
        assert re.search(reason, one.reason), one.reason
        assert "\n" not in one.reason


@pytest.mark.parametrize(
    ("spoil", "reason", "kept"),
    [
        (lambda root: radar_file(root).unlink(), "seasonal_data_000001.zarr.zip: missing", 0),
        (lambda root: shutil.rmtree(root / "dw_noisy_labels/0000004"), None, 0),
        (lambda root: next((root / "dw_noisy_labels/0000004").glob("*0720*/*.tif")).unlink(), "label.tif: missing", 3),
        (lambda root: write_label(root, 4, 2, crs=None), "the label does not say where it lies", 3),
        (lambda root: radar_file(root).write_bytes(radar_file(root).read_bytes()[:5000]), "not a readable zip file", 0),
    ],
    ids=["no radar", "no labels", "no label", "label without place", "truncated"],
)
def test_what_is_missing_is_named(tmp_path, spoil, reason, kept):
    root = v11_tree(tmp_path / "tree", train=((4,),), val=((2,),))
    spoil(root)
    found = read_all(Ssl4eoV11(path=root))
    mine = {name: one for name, one in found.items() if name.startswith("0000004")}
    assert len(found) - len(mine) == 4
    assert [one.reason for one in mine.values() if isinstance(one, Skipped) and reason not in one.reason] == []
    assert sum(isinstance(one, Patch) for one in mine.values()) == kept


def test_an_archive_that_cannot_be_listed_is_skipped_by_name_and_the_others_are_kept(tmp_path):
    root = v11_tree(tmp_path)
    optical_file(root).write_bytes(b"PK\5\6")
    (root / "train/S2L1C/ssl4eos12_train_seasonal_data_000001.zarr.zip").write_bytes(b"PK\5\6")
    found = read_all(Ssl4eoV11(path=root))
    skipped = {name: one.reason for name, one in found.items() if isinstance(one, Skipped)}
    assert "train/ssl4eos12_train_seasonal_data_000001.zarr.zip" in skipped
    assert all("not a readable zip file" in reason for reason in skipped.values())


def test_a_sample_that_two_archives_hold_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="both hold sample 0000004; keep one of them"):
        Ssl4eoV11(path=v11_tree(tmp_path, val=((4,),))).locations()


def test_samples_that_share_nothing_with_the_labels_are_an_error(tmp_path):
    root = one_file(tmp_path)
    (root / "dw_noisy_labels/0000004").rename(root / "dw_noisy_labels/0000005")
    with pytest.raises(ValueError, match="no sample of its 1 archives has a label in"):
        Ssl4eoV11(path=root).locations()


@pytest.mark.parametrize("name", ["../../4", "12345678", "", "4a"])
def test_a_sample_whose_name_is_no_id_spoils_its_archive(tmp_path, name):
    change = changed("S2L1C", sample=lambda _: np.array([name + " " * (not name)]))
    (skipped,) = read_all(Ssl4eoV11(path=one_file(tmp_path, change=change))).values()
    assert "is no id of SSL4EO-S12" in skipped.reason


def test_without_the_library_the_way_out_is_named(tmp_path, monkeypatch):
    root = one_file(tmp_path)
    monkeypatch.setitem(sys.modules, "numcodecs", None)
    (skipped,) = read_all(Ssl4eoV11(path=root)).values()
    assert skipped.reason == "zarr files need numcodecs; pip install 'cromss[formats]'"


# --- the archive is not trusted ---------------------------------------------------------------------------------------


def rewrite(file, members: dict, method=zipfile.ZIP_STORED, also=()):
    """The archive with some members replaced (None removes one), and others besides."""
    with zipfile.ZipFile(file) as old:
        content = {name: old.read(name) for name in old.namelist()} | members
    with zipfile.ZipFile(file, "w", method) as new:
        for name, data in [*content.items(), *also]:
            if data is not None:
                new.writestr(name, data)


def metadata(**changes):
    """bands/.zarray of the release, changed."""
    standard = {
        "zarr_format": 2, "shape": [1, 4, 13, SIDE, SIDE], "chunks": [1, 1, 13, SIDE, SIDE], "dtype": "<i2", "order": "C",
        "compressor": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}, "filters": None,
        "fill_value": 0, "dimension_separator": ".",
    }  # fmt: skip
    return json.dumps(standard | changes).encode()


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


HOSTILE = {
    "absolute name": ({"/etc/passwd": b""}, "a member that would lie outside"),
    "name above": ({"bands/../../x": b""}, "a member that would lie outside"),
    "Windows' name": ({"..\\x": b""}, "a member that would lie outside"),
    "huge array": ({"bands/.zarray": metadata(shape=[10**6, 4, 13, 264, 264])}, "bands decodes to .* GiB, more than 1 GiB"),
    "huge chunk": ({"bands/.zarray": metadata(chunks=[10**6, 4, 13, 264, 264])}, "bands decodes to .* GiB, more than 1 GiB"),
    "huge text": ({"sample/.zarray": metadata(shape=[9], chunks=[9], dtype="<U100000000")}, "sample decodes to .* GiB"),
    "a million chunks": ({"bands/.zarray": metadata(chunks=[1, 1, 1, 1, 1])}, "more than 4096 chunks"),
    "pickled objects": ({"bands/.zarray": metadata(dtype="|O", filters=[{"id": "pickle"}])}, "holds values of type '|O'"),
    "pickle as filter": ({"bands/.zarray": metadata(filters=[{"id": "pickle"}])}, "stored with compressor 'blosc', filters"),
    "pickle as compressor": ({"bands/.zarray": metadata(compressor={"id": "pickle"})}, "stored with compressor 'pickle'"),
    "structured": ({"bands/.zarray": metadata(dtype=[["a", "<i2"]])}, "expected numbers, text or dates"),
    "no type": ({"bands/.zarray": metadata(dtype="<q99,(")}, "expected numbers, text or dates"),
    "Fortran order": ({"bands/.zarray": metadata(order="F")}, "order 'F'"),
    "zarr v3": ({"bands/.zarray": metadata(zarr_format=3)}, "describes no zarr v2 array"),
    "shape of text": ({"bands/.zarray": metadata(shape="many")}, "describes no zarr v2 array"),
    "no chunks": ({"bands/.zarray": metadata(chunks=[1, 0, 13, 24, 24])}, "impossible sizes"),
    "separator": ({"bands/.zarray": metadata(dimension_separator="/../")}, "describes no zarr v2 array"),
    "fill": ({"bands/.zarray": metadata(fill_value="x" * 99)}, "impossible fill value"),
    "no JSON": ({"bands/.zarray": b"{"}, "bands/.zarray is not a JSON object"),
    "deep JSON": ({"bands/.zarray": b"[" * 10**5}, "bands/.zarray is not a JSON object"),
    "long JSON": ({"bands/.zarray": b" " * 2**21}, "bands/.zarray is larger than"),
    "no array": ({"bands/.zarray": None}, "lacks bands/.zarray"),
    "no Blosc": ({"bands/0.0.0.0.0": b"x" * 99}, "bands/0.0.0.0.0 is damaged"),
    "short Blosc": ({"bands/0.0.0.0.0": b"x"}, "bands/0.0.0.0.0 is damaged"),
    "other size": ({"bands/.zarray": metadata(chunks=[2, 1, 13, SIDE, SIDE])}, "a Blosc frame of"),
    "raw size": ({"bands/.zarray": metadata(compressor=None)}, "bytes, its chunk"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_by_name(tmp_path, kind):
    members, reason = HOSTILE[kind]
    root = one_file(tmp_path)
    rewrite(optical_file(root), members)
    reasons = [one.reason for one in read_all(Ssl4eoV11(path=root)).values() if isinstance(one, Skipped)]
    assert reasons
    assert all(re.search(reason, one) for one in reasons), reasons
    assert all(optical_file(root).name in one for one in reasons)
    assert not any("\n" in one for one in reasons)


def test_a_codec_that_unpickles_is_not_run(tmp_path, monkeypatch):
    from numcodecs import pickles

    monkeypatch.setattr(pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)  # new versions ask for it
    touched = tmp_path / "touched"
    root = one_file(tmp_path)
    bomb = pickle.dumps(Touches(touched))
    codec = metadata(dtype="|O", compressor=None, filters=[{"id": "pickle"}])
    rewrite(optical_file(root), {"bands/.zarray": codec} | {f"bands/0.{season}.0.0.0": bomb for season in range(4)})
    assert all(isinstance(one, Skipped) for one in read_all(Ssl4eoV11(path=root)).values())
    assert not touched.exists()
    # numcodecs would: what the test shows is that it is not asked
    pickles.Pickle().decode(pickle.dumps([Touches(touched), (1,)]))
    assert touched.exists()


def test_of_members_of_one_name_the_last_counts_as_for_zarr(tmp_path):
    root = one_file(tmp_path)
    with zipfile.ZipFile(optical_file(root)) as file:
        right = file.read("bands/.zarray")
    with pytest.warns(UserWarning, match="Duplicate name"):
        rewrite(optical_file(root), {"bands/.zarray": metadata(zarr_format=3)}, also=[("bands/.zarray", right)])
    assert all(isinstance(one, Patch) for one in read_all(Ssl4eoV11(path=root)).values())


@pytest.mark.parametrize("declared", ["as it is", "less than it is"])
def test_a_member_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path, declared, monkeypatch):
    monkeypatch.setattr(zarr_zip, "MAX_BYTES", 2**20)
    root, size = one_file(tmp_path, compressor=None), 2**24 + 0x030201  # a number that stands nowhere else
    rewrite(optical_file(root), {"bands/0.0.0.0.0": b"\0" * size}, zipfile.ZIP_DEFLATED)
    if declared == "less than it is":
        raw = optical_file(root).read_bytes()
        assert raw.count(struct.pack("<I", size)) == 2  # in the local and in the central header
        chunk = struct.pack("<I", 13 * SIDE * SIDE * 2)
        optical_file(root).write_bytes(raw.replace(struct.pack("<I", size), chunk))
    tracemalloc.start()
    first, *others = read_all(Ssl4eoV11(path=root)).values()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23
    assert re.search("damaged or larger than|unpacks to another size|checksum", first.reason)
    assert all(isinstance(one, Patch) for one in others)


def test_flipped_bytes_are_found(tmp_path):
    root = one_file(tmp_path)
    raw = bytearray(optical_file(root).read_bytes())
    with zipfile.ZipFile(optical_file(root)) as file:
        member = file.getinfo("bands/0.2.0.0.0")
    raw[member.header_offset + member.compress_size // 2] ^= 1
    optical_file(root).write_bytes(raw)
    found = list(read_all(Ssl4eoV11(path=root)).values())
    assert [type(one) for one in found] == [Patch, Patch, Skipped, Patch]
    assert "bands/0.2.0.0.0 is damaged (its checksum differs)" in found[2].reason


# --- reading a part of an array ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [(5, 1, 3, 24, 24), (1, 1, 3, 24, 24), (2, 3, 2, 10, 24), (8, 8, 8, 64, 64)])
@pytest.mark.parametrize("compressor", ["lz4", "zstd", "blosclz", None])
@pytest.mark.parametrize("dtype", ["<i2", "<f2", ">u4"])
def test_any_part_is_what_the_zarr_library_reads(tmp_path, chunks, compressor, dtype):
    values = np.random.default_rng(0).integers(0, 50, (5, 4, 3, 24, 24)).astype(dtype)
    file = tmp_path / "a.zarr.zip"
    write_zarr(file, {"other": values}, compressor=compressor, chunks=chunks)
    mine = ZarrZip(file)
    with zarr.storage.ZipStore(file, mode="r") as store:
        theirs = zarr.open_group(store, mode="r", zarr_format=2)["other"]
        for index in [(), (4,), (0, 0), (3, 2), (4, 3), (1, 1, 2), (4, 3, 2, 20, 23)]:
            found = mine.read("other", index)
            np.testing.assert_array_equal(found, theirs[index])
            np.testing.assert_array_equal(found, values[index])
            assert found.dtype == values.dtype


def test_of_a_chunk_of_many_images_only_the_blocks_of_one_are_decoded(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 2000, (16, 1, 13, 64, 64)).astype(np.int16)
    file = tmp_path / "a.zarr.zip"
    write_zarr(file, {"bands": values})
    decoded = []
    blosc = zarr_zip._blosc()

    class Counting:
        def decompress(self, frame):
            decoded.append(len(pixels := blosc.decompress(frame)))
            return pixels

    monkeypatch.setattr(zarr_zip, "_blosc", Counting)
    np.testing.assert_array_equal(ZarrZip(file).read("bands", (7, 0)), values[7, 0])
    block = zarr_zip._BLOSC.unpack_from(zipfile.ZipFile(file).read("bands/0.0.0.0.0"))[5]
    assert block < values[0].nbytes * 4  # or the test shows nothing
    assert sum(decoded) <= values[0].nbytes + 2 * block


def test_chunks_that_are_absent_hold_the_fill_value_and_positions_outside_are_errors(tmp_path):
    file = tmp_path / "a.zarr.zip"
    write_zarr(file, {"bands": np.ones((2, 4, 13, SIDE, SIDE), np.int16)})
    described = metadata(shape=[2, 4, 13, SIDE, SIDE], chunks=[2, 1, 13, SIDE, SIDE], fill_value=-7)
    rewrite(file, {"bands/0.1.0.0.0": None, "bands/.zarray": described})
    mine = ZarrZip(file)
    assert [mine.read("bands", (1, season)).mean() for season in range(4)] == [1, -7, 1, 1]
    for index in ((2, 0), (-1, 0), (0, 4), (0,) * 6):
        with pytest.raises(ValueError, match="no position"):
            mine.read("bands", index)


@pytest.mark.parametrize("field", range(7))
def test_a_blosc_header_that_lies_is_refused_or_decodes_to_as_many_bytes(field):
    """The decoder is not told how long its input is: whatever stands in the header, nothing is read beyond it."""
    from numcodecs import Blosc

    values = np.arange(50_000, dtype=np.int16)
    frame = bytearray(Blosc(cname="lz4", blocksize=4096).encode(values))
    start = (0, 1, 2, 3, 4, 8, 12)[field]
    for byte in range(start, start + (1 if field < 4 else 4)):
        for wrong in (0, 1, 2, 127, 128, 255):
            spoiled = bytearray(frame)
            spoiled[byte] = wrong
            try:
                found = zarr_zip._blosc_part(memoryview(spoiled), values.nbytes, 4000, 9000)
            except (ValueError, RuntimeError, struct.error):
                continue
            assert len(found) == 9000


def test_checksums_of_the_tests_archives_are_right(tmp_path):
    """The fault tests rewrite archives; an unchanged one passes the same way."""
    root = one_file(tmp_path)
    rewrite(optical_file(root), {}, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(optical_file(root)) as file:
        info = file.getinfo("bands/0.0.0.0.0")
        assert zlib.crc32(file.read(info)) == info.CRC
    assert all(isinstance(one, Patch) for one in read_all(Ssl4eoV11(path=root)).values())
