"""From stored pixels to network input. Every encoder carries the scaling it was trained on in its card.

All scalings: pixels (B, C, H, W), uint8 codes or raw values in the sensor's unit, C named by `bands`; float32 out.
"""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from cromss.contract import Encoding
from cromss.sensors import Sensor
from cromss.settings import Settings


class MeanStd(Settings):
    """The 8-bit code of mean +- 2 std divided by 255, in [0, 1]: the input of the paper.

    Raw values pass through the same quantisation as a uint8 store, bit for bit: an encoder sees downstream what it saw
    in pretraining.
    """

    kind: Literal["mean_2std"] = "mean_2std"
    needs_raw: ClassVar[bool] = False

    def __call__(self, pixels: Tensor, sensor: Sensor, bands: Iterable[str], encoding: Encoding) -> Tensor:
        return (pixels if encoding == "uint8" else _quantise(pixels, sensor, bands)).float() / 255


class Reflectance(Settings):
    """Top-of-atmosphere reflectance, DN / 1e4, unclipped: SSL4EO-S12's Sentinel-2 encoders."""

    kind: Literal["reflectance"] = "reflectance"
    needs_raw: ClassVar[bool] = True

    def __call__(self, pixels: Tensor, sensor: Sensor, bands: Iterable[str], encoding: Encoding) -> Tensor:
        _require_raw(self, encoding)
        if sensor.unit != "DN":
            raise ValueError(f"scaling reflectance: {sensor.title} is in {sensor.unit}; valid: mean_2std, zscore")
        return pixels.float() / 1e4


class ZScore(Settings):
    """(x - mean) / std of the sensor, unclipped: what most encoders of other projects were trained on."""

    kind: Literal["zscore"] = "zscore"
    needs_raw: ClassVar[bool] = True

    def __call__(self, pixels: Tensor, sensor: Sensor, bands: Iterable[str], encoding: Encoding) -> Tensor:
        _require_raw(self, encoding)
        index = sensor.indices(bands)
        mean, std = (_per_band(np.asarray(values)[index], pixels) for values in (sensor.mean, sensor.std))
        return (pixels.float() - mean) / std


Scaling = Annotated[MeanStd | Reflectance | ZScore, pydantic.Field(discriminator="kind")]


def _quantise(pixels: Tensor, sensor: Sensor, bands: Iterable[str]) -> Tensor:
    """`Sensor.encode` on the device: the same float32 operations in the same order."""
    low, width = (_per_band(values, pixels) for values in sensor.interval(bands))
    scaled = 255 * (pixels.float() - low) / width
    return scaled.clamp(0, 255).nan_to_num().to(torch.uint8)


def _per_band(values: np.ndarray, pixels: Tensor) -> Tensor:
    """(C,) constants as float32 (C, 1, 1) beside the pixels."""
    if len(values) != pixels.shape[-3]:
        raise ValueError(f"pixels have {pixels.shape[-3]} bands, {len(values)} are named")
    return torch.as_tensor(values, dtype=torch.float32, device=pixels.device)[:, None, None]


def _require_raw(scaling: Settings, encoding: Encoding) -> None:
    if encoding != "raw":
        raise ValueError(
            f"scaling {scaling.kind} needs raw values; this store holds uint8 codes, clipped at mean +- 2 std; "
            "ingest the data with --encoding raw"
        )
