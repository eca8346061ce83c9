"""Tiny but valid files of every layout: seeded pixels that look like land to a reader that checks statistics."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

from cromss.sensors import SENTINEL1, SENTINEL2

GRID = Affine(10, 0, 500000, 0, -10, 5300000)
CRS = "EPSG:32633"


def radar(size=(32, 32), seed=0) -> np.ndarray:
    """VV, VH in dB, float32."""
    rng = np.random.default_rng([1, seed])
    return np.stack([rng.normal(-11, 2, size), rng.normal(-18, 2, size)]).astype(np.float32)


def optical(size=(32, 32), seed=0, offset=0, bands=SENTINEL2.bands) -> np.ndarray:
    """DN, uint16: B10 is a few DN, everything else a few hundred or more."""
    rng = np.random.default_rng([2, seed])
    pixels = {band: rng.integers(5, 40, size) if band == "B10" else rng.integers(200, 4000, size) for band in bands}
    return (np.stack([pixels[band] for band in bands]) + offset).astype(np.uint16)


def classes(size=(32, 32), seed=0, among=range(9)) -> np.ndarray:
    """Label values, uint8."""
    return np.random.default_rng([3, seed]).choice(np.array(list(among), np.uint8), size)


def write_tif(path: Path, pixels: np.ndarray, names=(), crs=CRS, transform=GRID, nodata=None, tags=None, **profile):
    """A GeoTIFF of (C, H, W) or (H, W) pixels."""
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2]}
    with rasterio.open(
        path, "w", driver="GTiff", dtype=pixels.dtype, crs=crs, transform=transform, nodata=nodata, **shape, **profile
    ) as file:
        file.write(pixels)
        for number, name in enumerate(names, 1):
            file.set_band_description(number, name)
        file.update_tags(**(tags or {}))
    return path


def acquisition(folder: Path, size=(32, 32), seed=0, *, s1=None, s2=None, label=None, **label_options) -> Path:
    """`{s1,s2,label}.tif` of one acquisition; any of the three may be given."""
    write_tif(folder / "s1.tif", radar(size, seed) if s1 is None else s1)
    write_tif(folder / "s2.tif", optical(size, seed) if s2 is None else s2)
    write_tif(folder / "label.tif", classes(size, seed) if label is None else label, **label_options)
    return folder


def geotiff_tree(root: Path, locations=3, seasons=2, size=(32, 32)) -> Path:
    """`<location>/<acquisition>/{s1,s2,label}.tif`"""
    for place in range(locations):
        for season in range(seasons):
            acquisition(root / f"place{place}" / f"2020-{season:02d}", size, seed=10 * place + season)
    return root


def ssl4eo_tree(root: Path, ids=2, seasons=4, side=24, coded=False) -> Path:
    """The SSL4EO-S12 v1.0 tree with NoLDO-S12 labels; 10 m bands are side x side, 20 m half, 60 m a sixth."""
    degrees = Affine(1e-4, 0, 10, 0, -1e-4, 50)

    def native(band: str) -> int:
        return side // {"B1": 6, "B9": 6, "B10": 6, "B2": 1, "B3": 1, "B4": 1, "B8": 1}.get(band, 2)

    for number in range(ids):
        place = f"{number:07d}"
        for season in range(seasons):
            seed = 10 * number + season
            # Sentinel-1 is taken on other days: its folders have other names, in the same order
            radar_folder = root / "s1" / place / f"S1A_IW_GRDH_2020{3 * season + 2:02d}03"
            product = f"2020{3 * season + 1:02d}20T100000_T32UPU"
            for index, band in enumerate(SENTINEL1.bands):
                pixels = radar((side, side), seed)
                pixels = SENTINEL1.encode(pixels, SENTINEL1.bands) if coded else pixels
                write_tif(radar_folder / f"{band}.tif", pixels[index], crs="EPSG:4326", transform=degrees)
            for band in SENTINEL2.bands:
                by = side // native(band)
                pixels = optical((native(band), native(band)), seed, bands=[band])
                pixels = SENTINEL2.encode(pixels, [band]) if coded else pixels
                grid = degrees * Affine.scale(by)
                write_tif(root / "s2c" / place / product / f"{band}.tif", pixels, crs="EPSG:4326", transform=grid)
            label = root / "dw_noisy_labels" / place / product / "label.tif"
            write_tif(label, classes((side, side), seed).astype(np.int16), crs="EPSG:4326", transform=degrees)
    return root


def dfc2020_tree(root: Path, validation=3, test=2, side=32) -> Path:
    """DFC2020 in a wrapping folder, beside the `__MACOSX` that some copies hold."""
    for split, folders, count in (
        ("validation", {"s1": "s1_validation", "s2": "s2_validation", "dfc": "dfc_validation"}, validation),
        ("test", {"s1": "s1_0", "s2": "s2_0", "dfc": "dfc_0"}, test),
    ):
        base = root / "DFC_Public_Dataset" / f"ROIs0000_{split}"
        for number in range(count):
            seed = number + 100 * (split == "test")
            pixels = {
                "s1": radar((side, side), seed).astype(np.float64),
                "s2": optical((side, side), seed),
                "dfc": classes((side, side), seed, among=(1, 2, 4, 5, 6, 7, 9, 10)).astype(np.int32),
            }
            suffix = {what: f"ROIs0000_{split}_{what}_0_p{number}.tif" for what in pixels}
            for what, folder in folders.items():
                write_tif(base / folder / suffix[what], pixels[what])
            junk = root / "__MACOSX" / f"ROIs0000_{split}" / folders["s2"] / suffix["s2"]
            junk.parent.mkdir(parents=True, exist_ok=True)
            junk.write_bytes(b"\0\5\x16\7")
    return root
