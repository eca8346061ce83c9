"""What `bench stream` reads: random pixels in the shape of SSL4EO-S12, as a store and as its tree of GeoTIFFs."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.session import DummySession
from rasterio.transform import Affine
from scipy.ndimage import gaussian_filter

from cromss.contract import physical
from cromss.data.patch import Patch
from cromss.data.store import PatchStore, StoreWriter
from cromss.sensors import SENTINEL1, SENTINEL2

DEGREES = Affine(9e-5, 0, 10, 0, -9e-5, 50)
COARSER = {"B1": 6, "B9": 6, "B10": 6, "B2": 1, "B3": 1, "B4": 1, "B8": 1}  # the others: 2


def write_random_store(path: Path, places: int = 128, seasons: int = 4, size: int = 264) -> PatchStore:
    """Random pixels in the shape of SSL4EO-S12: both sensors, all bands."""
    bands = {card.name: card.bands for card in (SENTINEL1, SENTINEL2)}
    rng = np.random.default_rng(0)
    with StoreWriter(path, scheme="dynamic-world", bands=bands, size=(size, size)) as writer:
        for place in range(places):
            writer.add([_random_patch(rng, place, season, size) for season in range(seasons)], "train", 0)
    return PatchStore.open(path)


def _random_patch(rng: np.random.Generator, place: int, season: int, size: int) -> Patch:
    return Patch(
        patch_id=f"{place:07d}/{season}",
        location_id=f"{place:07d}",
        acquisition=str(season),
        images={
            "s1": rng.random((2, size, size), np.float32) * 30 - 30,
            "s2": rng.integers(0, 4000, (13, size, size), np.uint16),
        },
        contracts={card.name: physical(card.name, card.bands) for card in (SENTINEL1, SENTINEL2)},
        label=rng.integers(0, 9, (size, size), np.uint8),
    )


def write_random_tree(root: Path, places: int = 32, seasons: int = 4, size: int = 264) -> Path:
    """The SSL4EO-S12 v1.0 tree with NoLDO-S12 labels: 13 + 2 + 1 single-band files a patch, at their native sizes (a
    multiple of 6), compressed as published (LZW) and, being smooth with some noise, to about as many bytes."""
    rng = np.random.default_rng(0)
    for place in range(places):
        for season in range(seasons):
            land = gaussian_filter(rng.normal(size=(size, size)), 2) * 6
            name, product = f"{place:07d}", f"2020{3 * season + 1:02d}20T100000_T32UPU"
            radar = root / "s1" / name / f"S1A_IW_GRDH_2020{3 * season + 2:02d}03"
            for band, mean in zip(SENTINEL1.bands, SENTINEL1.mean, strict=True):
                _write(radar / f"{band}.tif", (mean + 3 * land + rng.normal(size=land.shape)).astype(np.float32))
            for band, mean in zip(SENTINEL2.bands, SENTINEL2.mean, strict=True):
                by = COARSER.get(band, 2)
                coarse = land[::by, ::by]
                values = mean * (1 + 0.3 * coarse) + 20 * rng.normal(size=coarse.shape)
                _write(root / "s2c" / name / product / f"{band}.tif", values.clip(1, 9000).astype(np.uint16), by)
            label = (2 * land + 4).clip(0, 8).astype(np.uint8)
            _write(root / "dw_noisy_labels" / name / product / "label.tif", label)
    return root


def _write(path: Path, pixels: np.ndarray, by: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pixels.shape
    with rasterio.Env(session=DummySession()), rasterio.open(
        path, "w", driver="GTiff", dtype=pixels.dtype, count=1, height=height, width=width, crs="EPSG:4326",
        transform=DEGREES * Affine.scale(by), compress="lzw",
    ) as file:  # fmt: skip
        file.write(pixels[None])
