import numpy as np
import pytest
from trees import optical, radar

from cromss.data.radiometry import (
    band_order,
    check_backscatter,
    check_reflectance,
    decibel,
    decide_offset,
    from_codes,
    has_data,
    pick,
    processing_baseline,
    remove_offset,
)
from cromss.sensors import SENSORS, SENTINEL1, SENTINEL2


def b10(value):
    return np.full(1000, value)


@pytest.mark.parametrize(
    ("baseline", "cirrus", "stated", "decided"),
    [
        (None, b10(55), None, (0, "by B10")),
        (None, b10(1005), None, (1000, "by B10")),
        (400, None, None, (1000, "by baseline 04.00")),
        (510, b10(1042), None, (1000, "by baseline 05.10")),
        (206, b10(18), None, (0, "by baseline 02.06")),
        (None, None, 0, (0, "stated")),
        (None, None, 1000, (1000, "stated")),
        (None, b10(1005), 0, (1000, "by B10")),  # the statement is for those that cannot tell
        (400, b10(20), 0, (0, "stated")),  # offset removed by an earlier hand
    ],
)
def test_the_offset_is_decided_by_baseline_then_b10_then_the_user(baseline, cirrus, stated, decided):
    assert decide_offset(baseline, cirrus, stated) == decided


def test_cirrus_in_part_of_the_image_does_not_look_like_the_offset():
    assert decide_offset(None, np.concatenate([b10(30)[:20], b10(1500)]), None)[0] == 0  # 2 % clear sky


@pytest.mark.parametrize(("baseline", "cirrus"), [(None, None), (None, b10(0)[:0]), (400, b10(20)), (206, b10(1005))])
def test_what_cannot_be_decided_is_an_error_naming_the_option(baseline, cirrus):
    with pytest.raises(ValueError, match="--offset 0 or --offset 1000"):
        decide_offset(baseline, cirrus, None)


@pytest.mark.parametrize(
    ("text", "baseline"),
    [
        ("S2A_MSIL1C_20220125T125311_N0400_R052_T24KVE_20220125T160613.SAFE", 400),
        ("S2A_MSIL1C_20180710T125311_N0206_R052_T24KVE_20180710T160613", 206),
        ("05.10", 510),
        ("GS2A_20180710T125311_015922_N02.06", None),
        ("20180710T125311_20180710T125627_T24KVE", None),
        ("Area", None),
    ],
)
def test_the_baseline_is_read_from_product_names_and_tags(text, baseline):
    assert processing_baseline(text) == baseline


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_removing_the_offset_clips_at_zero_and_keeps_the_type(dtype):
    removed = remove_offset(np.array([0, 999, 1000, 1001, 5000], dtype), 1000)
    assert removed.dtype == dtype
    np.testing.assert_array_equal(removed, [0, 0, 0, 1, 4000])
    np.testing.assert_array_equal(remove_offset(removed, 0), removed)


def test_bands_are_found_by_name_in_any_order_and_spelling():
    assert band_order(SENTINEL2, ["B08", "b02", "B8A", "QA60", "B11 - SWIR"]) == ("B8", "B2", "B8A", "", "B11")
    assert band_order(SENTINEL1, ["VH", "VV"]) == ("VH", "VV")
    assert band_order(SENTINEL1, ["Sigma0_VV_db", "Sigma0_VH_db"]) == ("VV", "VH")
    assert band_order(SENTINEL2, [""] * 13) == SENTINEL2.bands
    assert band_order(SENTINEL2, [""] * 9, stated="9") == SENTINEL2.subsets["9"]


@pytest.mark.parametrize(
    ("names", "stated", "message"),
    [
        ([""] * 12, "", "s2: 12 unnamed bands, 13 expected .*--s2-order"),
        ([""] * 12, "9", "the stated order 9 has 9 bands, the file 12"),
        (["B2", "B02"], "", "names a band twice"),
    ],
)
def test_a_band_order_that_nothing_tells_is_refused(names, stated, message):
    with pytest.raises(ValueError, match=message):
        band_order(SENTINEL2, names, stated)


def test_picking_follows_the_names_and_names_what_is_missing():
    pixels = np.arange(3)[:, None, None] * np.ones((3, 2, 2))
    np.testing.assert_array_equal(pick(pixels, ("B8", "B2", "B3"), ("B3", "B8"))[:, 0, 0], [2, 0])
    with pytest.raises(ValueError, match="lacks B1, B10 of the store's bands"):
        pick(pixels, ("B8", "B2", "B3"), ("B1", "B2", "B10"))


def test_data_is_where_all_bands_are_finite_and_not_all_are_nodata():
    pixels = np.array([[[1, 0, 0, np.nan, -9999, 5]], [[2, 0, 3, 4, 4, np.inf]]], np.float32)
    np.testing.assert_array_equal(has_data(pixels, None)[0], [True, False, True, False, True, False])
    np.testing.assert_array_equal(has_data(pixels, -9999)[0], [True, False, True, False, False, False])
    np.testing.assert_array_equal(has_data(pixels, 0)[0], [True, False, True, False, True, False])


def test_ordinary_backscatter_passes_and_even_calm_water_does():
    check_backscatter(*radar(), order_known=False, unit_known=False)
    noise = np.random.default_rng(0).normal(0, 1, (2, 1000))
    check_backscatter(-22 + noise[0], -22 + noise[1], order_known=False, unit_known=False)


def test_linear_and_swapped_backscatter_are_refused_with_the_remedy_unless_stated():
    power = 10 ** (radar() / 10)
    with pytest.raises(ValueError, match="--s1-unit linear"):
        check_backscatter(*power, order_known=False, unit_known=False)
    check_backscatter(*power, order_known=False, unit_known=True)
    with pytest.raises(ValueError, match="--s1-order VH,VV"):
        check_backscatter(*radar()[::-1], order_known=False, unit_known=False)
    check_backscatter(*radar()[::-1], order_known=True, unit_known=False)


def test_power_in_decibel_and_what_is_no_power_is_no_number():
    found = decibel(np.array([1.0, 0.1, 0.0, -1.0, np.nan]))
    np.testing.assert_allclose(found, [0, -10, np.nan, np.nan, np.nan], atol=1e-6)


def test_reflectance_in_place_of_dn_is_refused():
    check_reflectance(optical())
    with pytest.raises(ValueError, match="reflectance, not DN; multiply by 10000"):
        check_reflectance(optical() / np.float32(10000))


@pytest.mark.parametrize("name", SENSORS)
def test_codes_survive_decoding_and_encoding(name):
    sensor = SENSORS[name]
    codes = np.broadcast_to(np.arange(256, dtype=np.uint8), (len(sensor.bands), 1, 256))
    np.testing.assert_array_equal(sensor.encode(from_codes(codes, sensor, sensor.bands), sensor.bands), codes)


def test_a_product_processed_at_home_tells_no_baseline():
    assert processing_baseline("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP") is None
    assert processing_baseline("99.99") is None


def test_a_stated_order_never_renames_the_bands_that_a_file_names():
    with pytest.raises(ValueError, match="s1: the stated order is VH,VV, the file names its bands VV,VH"):
        band_order(SENTINEL1, ("VV", "VH"), "VH,VV")
    assert band_order(SENTINEL1, ("", ""), "VH,VV") == ("VH", "VV")
    assert band_order(SENTINEL1, ("VV", "VH"), "VV,VH") == ("VV", "VH")
