import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import scipy.ndimage
from trees import GRID, optical, radar, write_tif

from cromss.data.raster import Raster, centre, check_same_grid, raster_size, read_raster


def _overwrite(content: bytes, start: int) -> bytes:
    return content[:start] + bytes(200) + content[start + 200 :]


def _as_vrt(path: Path) -> None:
    """A mosaic description under a tif's name that any GDAL would follow to its (here harmless) source."""
    shutil.copy(path, path.parent / "source.tif")
    rasterio.shutil.copy(path.parent / "source.tif", path, driver="VRT")
    with rasterio.open(path) as file:
        assert file.driver == "VRT"
        assert file.read().any()


def test_pixels_names_and_georeference_are_read_as_written(tmp_path):
    pixels = optical((5, 7), bands=["B2", "B3"])
    raster = read_raster(write_tif(tmp_path / "a.tif", pixels, names=["B2", "B3"], nodata=0, tags={"PRODUCT": "x"}))
    np.testing.assert_array_equal(raster.pixels, pixels)
    assert raster.pixels.dtype == pixels.dtype
    assert (raster.names, raster.crs, raster.nodata) == (("B2", "B3"), "EPSG:32633", 0)
    assert raster.transform == GRID[:6]
    assert raster.tags["PRODUCT"] == "x"


def test_smooth_reading_is_bilinear_between_pixel_centres(tmp_path):
    pixels = np.random.default_rng(0).normal(size=(1, 4, 4)).astype(np.float32)
    read = read_raster(write_tif(tmp_path / "a.tif", pixels), size=(8, 8), smooth=True)
    expected = scipy.ndimage.zoom(pixels[0], 2, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(read.pixels[0], expected, atol=1e-5)
    assert read.transform == (5, 0, 500000, 0, -5, 5300000)


def test_labels_brought_to_another_size_invent_no_class(tmp_path):
    labels = np.array([[1, 7], [7, 1]], np.uint8)
    read = read_raster(write_tif(tmp_path / "a.tif", labels), size=(4, 4))
    np.testing.assert_array_equal(read.pixels[0], labels.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "a.tif: missing"),
        (_as_vrt, "a.tif: not a readable GeoTIFF"),
        (lambda path: path.write_bytes(b""), "a.tif: not a readable GeoTIFF"),
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "a.tif: not a readable GeoTIFF"),
        (lambda path: path.write_bytes(_overwrite(path.read_bytes(), 300)), "a.tif: damaged or truncated"),
    ],
    ids=["missing", "vrt", "empty", "truncated", "damaged"],
)
def test_an_unreadable_file_is_one_line_that_names_it(tmp_path, spoil, message):
    path = write_tif(tmp_path / "a.tif", optical((64, 64), bands=["B2"]), compress="deflate")
    spoil(path)
    with pytest.raises(ValueError, match=message) as caught:
        read_raster(path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_that_decodes_to_gigabytes_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "bomb.tif"
    shape = {"count": 8, "height": 20000, "width": 20000, "dtype": "float64"}
    with rasterio.open(path, "w", driver="GTiff", sparse_ok=True, compress="deflate", **shape):
        pass
    assert path.stat().st_size < 2**20
    with pytest.raises(ValueError, match="decode to 24 GiB; cut it"):
        read_raster(path)


def test_complex_pixels_and_wrong_band_counts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="pixels are complex64"):
        read_raster(write_tif(tmp_path / "a.tif", np.zeros((4, 4), np.complex64)))
    with pytest.raises(ValueError, match="3 bands, expected 1"):
        read_raster(write_tif(tmp_path / "b.tif", np.zeros((3, 4, 4), np.uint8)), counts=[1])


def test_a_network_path_is_never_opened():
    with pytest.raises(ValueError, match="missing"):
        read_raster(Path("/vsicurl/http://127.0.0.1:9/x.tif"))


def raster(size=(4, 6), crs="EPSG:32633", transform=GRID[:6]):
    return Raster(np.zeros((1, *size)), ("",), crs, transform)


def test_grids_that_differ_in_the_tenth_digit_are_the_same():
    near = (8.9831528e-05, 0.0, -0.781893623298, 0.0, -8.9831528e-05, 38.128812571396)
    other = (8.9831528001e-05, 0.0, -0.781893623299, 0.0, -8.9831528e-05, 38.128812571395)
    check_same_grid(raster(transform=near), raster(transform=other), "s2 and s1", 0.1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (raster(size=(4, 7)), "differ in size: 4x6 and 4x7 pixels"),
        (raster(crs="EPSG:32634"), "differ in CRS: EPSG:32633 and EPSG:32634"),
        (raster(transform=(10, 0, 500010, 0, -10, 5300000)), "corners lie 1 pixels apart"),
        (raster(transform=(10, 0, 500000, 0, 10, 5300000)), "differ in transform"),
        (raster(transform=(float("nan"), 0, 0, 0, 1, 0)), "differ in transform"),
    ],
    ids=["size", "crs", "shifted", "flipped", "nan"],
)
def test_other_grids_are_told_apart(other, message):
    with pytest.raises(ValueError, match=message):
        check_same_grid(raster(), other, "s2 and s1", 0.1)


def test_files_without_georeference_are_compared_by_size_alone():
    check_same_grid(raster(), raster(crs="", transform=(1, 0, 0, 0, 1, 0)), "s2 and label", 0.1)


def test_the_centre_of_a_utm_grid_in_degrees():
    lon, lat = centre("EPSG:32633", (10, 0, 500000 - 50, 0, -10, 50), (10, 10))
    assert lon == pytest.approx(15.0, abs=1e-9)  # zone 33's central meridian, on the equator
    assert lat == pytest.approx(0.0, abs=1e-9)
    assert np.isnan(centre("", GRID[:6], (10, 10))).all()


def test_keys_for_a_bucket_in_the_environment_do_not_slow_the_reading_of_local_files(tmp_path, monkeypatch):
    path = write_tif(tmp_path / "a.tif", radar())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr("rasterio.session.Session.from_environ", lambda *_: 1 / 0)
    found = read_raster(path)
    assert raster_size(path) == found.size
    assert np.isfinite(centre(found.crs, found.transform, found.size)).all()


def test_a_header_alone_gives_all_but_the_pixels(tmp_path):
    path = write_tif(tmp_path / "a.tif", radar(), names=("VV", "VH"), nodata=-99, tags={"a": "b"})
    whole, header = read_raster(path, size=(64, 64)), read_raster(path, size=(64, 64), decode=False)
    assert (header.pixels.shape, header.pixels.dtype) == (whole.pixels.shape, whole.pixels.dtype)
    assert header.pixels.strides == (0, 0, 0)
    assert replace(header, pixels=None) == replace(whole, pixels=None)
