"""From stored pixels to network input."""

import typing

import numpy as np
import pytest
import torch

from cromss.networks.scaling import MeanStd, Reflectance, Scaling, ZScore
from cromss.sensors import SENSORS, SENTINEL1, SENTINEL2

SCALINGS = typing.get_args(typing.get_args(Scaling)[0])


@pytest.mark.parametrize(
    ("sensor", "dtype"),
    [(sensor, dtype) for sensor in SENSORS.values() for dtype in ("float32", "float64", "int16")]
    + [(SENTINEL2, "uint16")],
    ids=lambda value: getattr(value, "name", value),
)
def test_raw_values_reach_the_network_exactly_as_a_uint8_store_would_bring_them(sensor, dtype):
    low, width = sensor.interval(sensor.bands)
    noise = np.random.default_rng(0).uniform(-0.2, 1.2, (2, len(sensor.bands), 40, 40))
    raw = noise * width[:, None, None] + low[:, None, None]
    raw = (raw.clip(0) if dtype == "uint16" else raw).astype(dtype)
    stored = torch.from_numpy(sensor.encode(raw, sensor.bands))
    assert len(stored.unique()) > 20
    scaling = MeanStd()
    direct = scaling(torch.from_numpy(raw), sensor, sensor.bands, "raw")
    assert torch.equal(direct, scaling(stored, sensor, sensor.bands, "uint8"))


def test_quantisation_boundaries_and_missing_values_agree_with_the_store():
    low, width = SENTINEL1.interval(("VH",))
    steps = (np.arange(-2, 259, dtype=np.float32) / 255 * width + low).astype(np.float32)
    around = np.stack([np.nextafter(steps, -np.inf), steps, np.nextafter(steps, np.inf)])[None, None]
    around[0, 0, 0, :3] = np.nan, np.inf, -np.inf
    expected = torch.from_numpy(SENTINEL1.encode(around, ("VH",))).float() / 255
    assert torch.equal(MeanStd()(torch.from_numpy(around), SENTINEL1, ("VH",), "raw"), expected)


def test_codes_become_fractions_of_255():
    codes = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    assert MeanStd()(codes, SENTINEL1, ("VV",), "uint8").flatten().tolist() == pytest.approx([0, 0.2, 1])


def test_reflectance_is_digital_numbers_over_ten_thousand():
    pixels = torch.full((1, 1, 2, 2), 12500, dtype=torch.int32)
    assert Reflectance()(pixels, SENTINEL2, ("B4",), "raw").unique().tolist() == [1.25]


def test_reflectance_of_a_radar_is_refused():
    with pytest.raises(ValueError, match="Sentinel-1 is in dB; valid: mean_2std"):
        Reflectance()(torch.zeros(1, 2, 2, 2), SENTINEL1, SENTINEL1.bands, "raw")


def test_zscore_picks_the_statistics_of_the_named_band():
    index = SENTINEL2.bands.index("B8A")
    pixels = torch.full((1, 1, 1, 1), SENTINEL2.mean[index] + 3 * SENTINEL2.std[index])
    assert ZScore()(pixels, SENTINEL2, ("B8A",), "raw").item() == pytest.approx(3, abs=1e-5)


@pytest.mark.parametrize("cls", SCALINGS)
def test_a_scaling_that_needs_raw_values_refuses_codes_and_names_the_way_out(cls):
    codes = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    if cls.needs_raw:
        with pytest.raises(ValueError, match="--encoding raw"):
            cls()(codes, SENTINEL2, ("B4", "B3", "B2"), "uint8")
    else:
        assert cls()(codes, SENTINEL2, ("B4", "B3", "B2"), "uint8").dtype == torch.float32


@pytest.mark.parametrize("cls", [MeanStd, ZScore])
def test_a_band_count_that_does_not_fit_is_an_error(cls):
    with pytest.raises(ValueError, match="pixels have 13 bands, 3 are named"):
        cls()(torch.zeros(1, 13, 2, 2), SENTINEL2, ("B4", "B3", "B2"), "raw")
