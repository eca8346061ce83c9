"""Cutting patches: tiles of one size, and spatial halves with a gap between, so that no test pixel is trained on."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np

from cromss.data.patch import Patch
from cromss.data.raster import centre, position

Split = Literal["source", "none", "halves", "halves-swapped"]
Axis = Literal["west-east", "north-south"]
Window = tuple[int, int, int, int]  # top, left, height, width


def cut(
    patch: Patch,
    tile: int | None = None,
    *,
    split: Split = "source",
    guard: int = 64,
    axis: Axis = "west-east",
) -> list[Patch]:
    """The tiles of a patch: whole ones only, row by row; `tile=None` keeps it (or each half) whole.

    split   `source`: the split the source gave. `none`: all train. `halves`: the western half is train, the eastern
            test, and a strip of `guard` pixels between them is dropped; `halves-swapped`: the other way round.
    axis    `north-south` halves it the other way: the northern half takes the part of the western.

    A tile keeps `location_id` and gets `tile` "r<row>c<column>", which is also appended to its `patch_id`.
    Raises ValueError when not one tile fits.
    """
    height, width = patch.size
    if split in ("source", "none"):
        chosen = patch if split == "source" else replace(patch, split="train")
        if tile is None:
            return [chosen]
        if min(height, width) < tile:
            raise ValueError(f"{height}x{width} pixels: smaller than a tile of {tile}; choose a smaller --tile")
        return list(_tiles(chosen, (0, 0, height, width), tile, (0, 0)))

    across = axis == "north-south"
    along, beside = (height, width) if across else (width, height)
    half = (along - guard) // 2
    if min(half, beside) < (tile or 1):
        raise ValueError(
            f"{height}x{width} pixels: halves of {max(half, 0)} pixels beside a guard of {guard} hold no tile"
            f"{f' of {tile}' if tile else ''}; choose a smaller --tile or --guard"
        )
    areas: list[Window] = [(0, 0, half, width), (height - half, 0, half, width)]
    if not across:
        areas = [(0, 0, height, half), (0, width - half, height, half)]
    count = half // (tile or half)
    firsts = [(0, 0), (count, 0) if across else (0, count)]
    names = ("train", "test") if split == "halves" else ("test", "train")
    return [
        part
        for name, area, first in zip(names, areas, firsts, strict=True)
        for part in _tiles(replace(patch, split=name), area, tile, first)
    ]


def _tiles(patch: Patch, area: Window, tile: int | None, first: tuple[int, int]) -> Iterator[Patch]:
    top, left, height, width = area
    rows, columns = (tile, tile) if tile else (height, width)
    for row in range(height // rows):
        for col in range(width // columns):
            window = (top + row * rows, left + col * columns, rows, columns)
            yield _crop(patch, window, f"r{first[0] + row}c{first[1] + col}")


def _crop(patch: Patch, window: Window, name: str) -> Patch:
    top, left, height, width = window
    a, b, _, d, e, _ = patch.transform
    x, y = position(patch.transform, top, left)
    transform = (a, b, x, d, e, y)
    lon, lat = centre(patch.crs, transform, (height, width))

    def part(pixels: np.ndarray | None) -> np.ndarray | None:
        # a copy: a view would keep the whole scene in memory as long as one tile of it waits to be written
        return None if pixels is None else pixels[..., top : top + height, left : left + width].copy()

    return replace(
        patch,
        patch_id=f"{patch.patch_id}/{name}",
        tile=name,
        images={modality: part(image) for modality, image in patch.images.items()},
        label=part(patch.label),
        clean=part(patch.clean),
        valid=part(patch.valid),
        transform=transform,
        lon=lon,
        lat=lat,
    )
