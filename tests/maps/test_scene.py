"""What a scene's files mean is settled or refused; what is read is what lies there, on one grid."""

import numpy as np
import pytest
from handmade import BANDS, PerPixel, card, values, write
from rasterio.warp import transform_bounds

from cromss.maps.model import Model
from cromss.maps.scene import Reading, survey
from cromss.maps.windows import Box

STATED = Reading(offset="0")


def read(model, files, box, reading=STATED):
    scene = survey(files, model, reading)
    with scene.opened() as opened:
        return scene, *opened.read(box)


def test_what_is_read_is_what_lies_there_by_band_name(model, scene):
    turned = write(scene["s2"], values("s2", 150, 170, 1)[::-1], BANDS["s2"][::-1])
    _, images, valid = read(model, scene | {"s2": turned}, Box(20, 30, 90, 100))
    np.testing.assert_array_equal(images["s2"], values("s2", 150, 170, 1)[:, 20:90, 30:100])
    np.testing.assert_array_equal(images["s1"], values("s1", 150, 170, 0)[:, 20:90, 30:100])
    assert valid["s1"].all()
    assert valid["s2"].all()


def test_beyond_the_border_the_scene_is_mirrored(model, scene):
    _, images, _ = read(model, scene, Box(-20, 140, 44, 204))
    inside = values("s1", 150, 170, 0)[:, :44, 140:]
    np.testing.assert_array_equal(images["s1"][:, 20:, :30], inside)
    np.testing.assert_array_equal(images["s1"][:, :20, :30], inside[:, :20][:, ::-1])
    np.testing.assert_array_equal(images["s1"][:, 20:, 30:60], inside[:, :, ::-1][:, :, :30])


@pytest.mark.parametrize(
    ("nodata", "gap"), [(None, 0), (0, 0), (-9999.0, -9999), (None, np.nan), (float("nan"), np.nan)]
)
def test_gaps_are_gaps_in_every_spelling(model, scene, nodata, gap):
    pixels = values("s1", 150, 170)
    pixels[:, 10:20, 10:20] = gap
    write(scene["s1"], pixels, BANDS["s1"], nodata=nodata)
    _, _, valid = read(model, scene, Box(0, 0, 64, 64))
    expected = np.ones((64, 64), bool)
    expected[10:20, 10:20] = False
    np.testing.assert_array_equal(valid["s1"], expected)


@pytest.mark.parametrize("crs", ["EPSG:32632", "EPSG:4326"])
@pytest.mark.parametrize("nodata", [None, -9999.0])
def test_radar_on_another_grid_is_warped_to_the_optical_one(model, tmp_path, scene, crs, nodata):
    """The same smooth field of ground positions, sampled on either grid: warped, they agree."""
    from rasterio.warp import transform as reproject

    def field(x, y):  # of UTM metres
        return np.stack([-12 + 3 * np.sin(x / 400) * np.cos(y / 500), -20 + 3 * np.cos(x / 450)]).astype(np.float32)

    west, south, east, north = transform_bounds("EPSG:32633", crs, 500_000, 4_998_500, 501_700, 5_000_000)
    step = 8 if crs != "EPSG:4326" else 8e-5
    height, width = int((north - south) / step) + 40, int((east - west) / step) + 40
    transform = (step, 0, west - 20 * step, 0, -step, north + 20 * step)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    xs, ys = reproject(crs, "EPSG:32633", (transform[2] + step * columns).ravel(), (transform[5] - step * rows).ravel())
    pixels = field(np.array(xs), np.array(ys)).reshape(2, height, width)
    pixels[:, :, : width // 2] = nodata or 0  # the western half is a gap
    write(scene["s1"], pixels, BANDS["s1"], transform, crs, nodata)
    settled, images, valid = read(model, scene, Box(0, 0, 150, 170))
    assert "s1 warped to the grid of s2 (bilinear)" in settled.notes
    columns, rows = np.meshgrid(np.arange(170) + 0.5, np.arange(150) + 0.5)
    expected = field(500_000 + 10 * columns, 5_000_000 - 10 * rows)
    there = valid["s1"]
    assert 0.4 < there.mean() < 0.6
    assert there[:, 100:].all()
    assert not there[:, :70].any()
    # the gap's own value bleeds into nothing: the error is that of the interpolation, up to the last pixel with data
    assert np.abs(images["s1"] - expected)[:, there].max() < 0.1


def test_a_part_of_the_ground_that_radar_does_not_see_is_a_gap(model, scene):
    moved = write(scene["s1"], values("s1", 150, 170), BANDS["s1"], (10, 0, 500_000 + 850.0, 0, -10, 5_000_000))
    _, images, valid = read(model, scene | {"s1": moved}, Box(0, 0, 150, 170))
    assert not valid["s1"][:, :84].any()
    assert valid["s1"][:, 86:].all()
    np.testing.assert_allclose(images["s1"][:, :, 85:], values("s1", 150, 170)[:, :, :85], atol=1e-4)


@pytest.mark.parametrize(("nodata", "there"), [(None, True), (0, True), (-9999.0, False)])
def test_one_band_alone_is_a_gap_only_where_the_file_marks_gaps(model, scene, nodata, there):
    """0 dB in VV is a bright pixel; a marked gap in one band is one in both, warped or not."""
    pixels = values("s1", 150, 170)
    pixels[0, 40:60, 40:60] = nodata or 0
    for shift in (0, 5.0):  # metres: half a pixel
        write(scene["s1"], pixels, BANDS["s1"], (10, 0, 500_000 + shift, 0, -10, 5_000_000), nodata=nodata)
        settled, images, valid = read(model, scene, Box(0, 1, 150, 170))
        assert settled.parts[0].warped == bool(shift)
        assert valid["s1"][45:55, 45:55].all() == there
        assert valid["s1"][45:55, 45:55].any() == there
        assert images["s1"][:, valid["s1"]].min() > -70, "nothing of the mark bleeds into its neighbours"


def test_the_offset_is_removed_and_linear_power_becomes_decibel(model, scene, tmp_path):
    draw = np.random.default_rng(0)
    optical = np.concatenate([values("s2", 150, 170), draw.integers(5, 60, (1, 150, 170)).astype(np.float32)])
    write(scene["s2"], (optical + 1000).astype(np.uint16), (*BANDS["s2"], "B10"))
    decibel = values("s1", 150, 170)
    write(scene["s1"], 10 ** (decibel / 10), BANDS["s1"])
    settled, images, _ = read(model, scene, Box(0, 0, 64, 64), Reading(s1_unit="linear"))
    np.testing.assert_allclose(images["s2"], optical.astype(np.uint16)[:3, :64, :64], atol=1)
    np.testing.assert_allclose(images["s1"], decibel[:, :64, :64], atol=1e-3)
    assert settled.notes == ("s1: linear power to dB", "s2 offset: 1000 removed, by B10")


def optical(pixels, names=BANDS["s2"], **how):
    return lambda files: write(files["s2"], pixels, names, **how)


def radar(pixels, names=BANDS["s1"], **how):
    return lambda files: write(files["s1"], pixels, names, **how)


S1, S2 = values("s1", 150, 170), values("s2", 150, 170)
ELSEWHERE = (10, 0, 600_000.0, 0, -10, 5_000_000)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (optical(S2[:2], BANDS["s2"][:2]), r"s2\.tif lacks s2 B4; it holds B2, B3; .* was trained on B2, B3, B4"),
        (optical(S2, None), r"s2\.tif: 3 unnamed bands; the network reads B2, B3, B4; .*--s2-order B2,B3,B4"),
        (optical(S2 / 1e4), r"s2\.tif: s2 values reach only .*reflectance, not DN"),
        (optical(np.full_like(S2, np.nan)), r"s2\.tif: has no pixel with data"),
        (optical(np.ones_like(S2, np.uint8)), r"s2\.tif: holds 8-bit values"),
        (optical(S2, PRODUCT="S2A_MSIL2A_20200101T0"), r"is Sentinel-2 L2A, .* trained on Sentinel-2 L1C"),
        (radar(10 ** (S1 / 10)), r"s1\.tif: .*linear power, not dB"),
        (radar(S1[::-1].copy(), None), r"s1\.tif: .*VH,VV order"),
        (radar(np.zeros_like(S1)), r"s1\.tif: has no pixel with data"),
        (radar(S1, transform=ELSEWHERE), r"s1\.tif and s2\.tif do not overlap"),
        (radar(S1, crs="EPSG:32733"), r"s1\.tif and s2\.tif do not overlap"),
        (radar(S1[:, :50, :60], crs=None), r"s1\.tif: has no CRS, .*\(50x60\) .*\(150x170\)"),
        (lambda files: files["s1"].unlink(), r"s1\.tif: missing"),
        (lambda files: files["s1"].write_bytes(files["s1"].read_bytes()[:9000]), r"s1\.tif: "),
        (lambda files: files["s1"].write_text("<VRTDataset/>"), r"s1\.tif: not a readable GeoTIFF"),
    ],
)
def test_what_would_make_a_wrong_map_is_refused_by_name(model, scene, spoil, named):
    spoil(scene)
    with pytest.raises(ValueError, match=named):
        read(model, scene, Box(0, 0, 64, 64))


def test_the_offset_must_be_told_where_nothing_tells_it(model, scene):
    with pytest.raises(ValueError, match=r"s2\.tif: no B10 and no processing baseline"):
        survey(scene, model, Reading())
    write(
        scene["s2"],
        values("s2", 150, 170),
        BANDS["s2"],
        PRODUCT="S2A_MSIL1C_20200612T101031_N0209_R022_T32TQM_20200612T1",
    )
    assert "s2 offset: none, by baseline 02.09" in survey(scene, model, Reading()).notes


def test_a_modality_that_the_network_does_not_know_is_refused(scene, tmp_path):
    alone = Model(PerPixel(("s2",)), card(("s2",)), tmp_path)
    with pytest.raises(ValueError, match=r"s1\.tif: is given as s1, .* knows s2 only"):
        survey(scene, alone, STATED)


def test_a_file_whose_blocks_do_not_fit_is_refused(model, scene, monkeypatch):
    monkeypatch.setattr("cromss.data.raster._MAX_BLOCK", 64 * 64 * 2 * 4 - 1)
    with pytest.raises(ValueError, match=r"s1\.tif: is stored in blocks of 64x64 pixels"):
        survey(scene, model, STATED)


def test_a_turned_grid_stays_as_it_is(model, scene):
    turned = (0.0, 10.0, 500_000.0, 10.0, 0.0, 5_000_000.0)
    write(scene["s2"], values("s2", 150, 170), BANDS["s2"], turned)
    write(scene["s1"], values("s1", 150, 170), BANDS["s1"], turned)
    settled, images, _ = read(model, scene, Box(0, 0, 64, 64))
    assert settled.grid.transform == turned
    assert not settled.parts[0].warped, "one grid, though turned, needs no interpolation"
    np.testing.assert_array_equal(images["s1"], values("s1", 150, 170)[:, :64, :64])
