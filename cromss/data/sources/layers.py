"""Several files as one raster: single-band files of several resolutions on the grid of the finest."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cromss.data.raster import Raster, check_same_grid, raster_size, read_raster

_COARSER = (1, 2, 6)  # 10, 20, 60 m
_TOLERANCE = 0.5  # pixels of the finest grid


def stack(files: Sequence[Path], names: Sequence[str]) -> Raster:
    """One band a file, `names` in the same order. Coarser ones are brought to the finest grid bilinearly, pixel centre
    to pixel centre.

    Raises ValueError naming the file: missing, unreadable, several bands, another size than a half or a sixth of the
    finest, another place, pixel type or nodata value.
    """
    sizes = [raster_size(file) for file in files]
    size = max(sizes)
    layers = [
        read_raster(file, counts=[1], size=size, coarser=_COARSER, smooth=own != size)
        for file, own in zip(files, sizes, strict=True)
    ]
    finest = sizes.index(size)
    for file, layer in zip(files, layers, strict=True):
        check_same_grid(layers[finest], layer, f"{files[finest].name} and {file.name}", _TOLERANCE)
        for what, one, other in (
            ("pixel type", layers[finest].pixels.dtype, layer.pixels.dtype),
            ("nodata value", str(layers[finest].nodata), str(layer.nodata)),
        ):
            if one != other:
                raise ValueError(f"{files[finest].name} and {file.name} differ in {what}: {one} and {other}")
    pixels = np.concatenate([layer.pixels for layer in layers])
    return replace(layers[finest], pixels=pixels, names=tuple(names))
