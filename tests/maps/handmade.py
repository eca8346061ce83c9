"""Networks and scenes whose maps can be worked out by hand."""

import numpy as np
import rasterio
import torch
from rasterio import Affine
from torch import nn

from cromss.config import resolve
from cromss.contract import Contract
from cromss.networks.fusion import FusionNetwork
from cromss.networks.scaling import ZScore
from cromss.sensors import sensor
from cromss.training.segmenter_file import SegmenterCard

BANDS = {"s1": ("VV", "VH"), "s2": ("B2", "B3", "B4")}
UTM = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)


class PerPixel(FusionNetwork):
    """A class is as likely as two of its bands are bright: no pixel knows of another."""

    def __init__(self, modalities=("s1", "s2")):
        super().__init__()
        self.modalities = tuple(modalities)
        self.convolutions = nn.ModuleDict()
        for seed, name in enumerate(self.modalities):
            torch.manual_seed(seed)
            self.convolutions[name] = nn.Conv2d(len(BANDS[name]), 9, 1)
            self.convolutions[name].output_stride = 8

    def alone(self, modality, image):
        assert not any(side % 8 for side in image.shape[-2:])
        return 3 * self.convolutions[modality](image)

    def _encoder(self, modality):
        return self.convolutions[modality]


def card(modalities=("s1", "s2")):
    fusion = {"kind": "late"} if len(modalities) > 1 else {"kind": "single", "modality": modalities[0]}
    return SegmenterCard(
        model=resolve({"model": {"fusion": fusion, "scaling": {"kind": "zscore"}}}).model,
        bands={name: BANDS[name] for name in modalities},
        scaling=ZScore(),
        contracts={name: Contract.of(name, BANDS[name], "raw") for name in modalities},
        scheme="dynamic-world",
    )


def values(name, height, width, seed=0, smooth=False):
    """(C, H, W) float32 of plausible physical values."""
    draw = np.random.default_rng(seed)
    own, index = sensor(name), sensor(name).indices(BANDS[name])
    if smooth:
        rows, columns = np.mgrid[:height, :width]
        waves = np.stack([np.sin(rows / (17 + k) + k) * np.cos(columns / (23 - k)) for k in range(len(index))])
    else:
        waves = draw.normal(size=(len(index), height, width)).clip(-2, 2)
    mean, std = (np.array(part)[index, None, None] for part in (own.mean, own.std))
    low = 1 if name == "s2" else -60
    return np.maximum(mean + 0.8 * waves * std, low).astype(np.float32)


def write(path, pixels, names=None, transform=UTM, crs="EPSG:32633", nodata=None, **tags):
    with rasterio.open(
        path, "w", driver="GTiff", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2], dtype=pixels.dtype.name,
        crs=crs, transform=Affine(*transform), nodata=nodata, tiled=True, blockxsize=64, blockysize=64,
    ) as file:  # fmt: skip
        if names:
            file.descriptions = names
        file.write(pixels)
        file.update_tags(**tags)
    return path
