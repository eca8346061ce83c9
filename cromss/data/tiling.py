"""Cutting patches: tiles of one size, and spatial halves with a gap between, so that no test pixel is trained on."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from cromss.data.patch import Patch
from cromss.data.raster import Affine6, centre, position

Split = Literal["source", "none", "halves", "halves-swapped"]
Axis = Literal["west-east", "north-south"]
Window = tuple[int, int, int, int]  # top, left, height, width


@dataclass(frozen=True)
class Tile:
    """A part of a grid: its name ("" = the whole), its window, and the split it goes to (None = its location's)."""

    name: str
    window: Window
    split: str | None = None


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
    return [crop(patch, part) for part in tiles(patch.size, tile, split=split, guard=guard, axis=axis)]


def tiles(
    size: tuple[int, int],
    tile: int | None = None,
    *,
    split: Split = "source",
    guard: int = 64,
    axis: Axis = "west-east",
) -> list[Tile]:
    """How a grid of (H, W) pixels is cut, from its geometry alone (see `cut`). Raises ValueError when no tile fits."""
    height, width = size
    if split in ("source", "none"):
        goes = None if split == "source" else "train"
        if tile is None:
            return [Tile("", (0, 0, height, width), goes)]
        if min(height, width) < tile:
            raise ValueError(f"{height}x{width} pixels: smaller than a tile of {tile}; choose a smaller --tile")
        return list(_rows(goes, (0, 0, height, width), tile, (0, 0)))

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
    return [part for half in zip(names, areas, firsts, strict=True) for part in _rows(half[0], half[1], tile, half[2])]


def _rows(split: str | None, area: Window, tile: int | None, first: tuple[int, int]) -> Iterator[Tile]:
    top, left, height, width = area
    rows, columns = (tile, tile) if tile else (height, width)
    for row in range(height // rows):
        for col in range(width // columns):
            window = (top + row * rows, left + col * columns, rows, columns)
            yield Tile(f"r{first[0] + row}c{first[1] + col}", window, split)


def crop(patch: Patch, tile: Tile) -> Patch:
    """The part of a patch that a tile is."""
    if not tile.name:
        return patch if tile.split is None else replace(patch, split=tile.split)
    top, left, height, width = tile.window
    transform = moved(patch.transform, top, left)
    lon, lat = centre(patch.crs, transform, (height, width))

    def part(pixels: np.ndarray | None) -> np.ndarray | None:
        # a copy: a view would keep the whole scene in memory as long as one tile of it waits to be written
        return None if pixels is None else pixels[..., top : top + height, left : left + width].copy()

    return replace(
        patch,
        patch_id=f"{patch.patch_id}/{tile.name}",
        tile=tile.name,
        split=patch.split if tile.split is None else tile.split,
        images={modality: part(image) for modality, image in patch.images.items()},
        label=part(patch.label),
        clean=part(patch.clean),
        valid=part(patch.valid),
        transform=transform,
        lon=lon,
        lat=lat,
    )


def moved(transform: Affine6, top: int, left: int) -> Affine6:
    """The transform of a window that starts at that row and column."""
    a, b, _, d, e, _ = transform
    x, y = position(transform, top, left)
    return (a, b, x, d, e, y)
