"""Which windows a scene is predicted in, and how they are blended.

The grid of windows hangs on the ground, on the origin of the CRS, and not on the scene's corner: a pixel away from the border
is predicted from the same windows, whatever scene it comes in. Tiles are the units of work: each is computed by itself from
all windows that touch it, so nothing depends on who computes which tile, or on when.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rasterio import Affine


@dataclass(frozen=True)
class Box:
    """Rows top..bottom, columns left..right, the ends not included; a window may reach beyond the scene."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)"""
        return self.bottom - self.top, self.right - self.left

    def cut(self, other: "Box") -> "Box":
        """What both cover; empty where they do not meet."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        return Box(top, left, max(top, min(self.bottom, other.bottom)), max(left, min(self.right, other.right)))

    def within(self, origin: "Box") -> tuple[slice, slice]:
        """Rows and columns of this box in an array that begins at `origin`."""
        return (
            slice(self.top - origin.top, self.bottom - origin.top),
            slice(self.left - origin.left, self.right - origin.left),
        )


@dataclass(frozen=True)
class Windows:
    """Windows of `window` pixels a side that overlap by `overlap` in a scene of `size` (H, W); `phase` = (row, column) of the
    corner of one of them. Raises ValueError for an overlap that is no part of the window."""

    size: tuple[int, int]
    window: int
    overlap: int
    phase: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.window < 32:
            raise ValueError(f"window={self.window}: must be 32 pixels or more; the paper trains on 256")
        if not 0 <= self.overlap <= self.window // 2:
            raise ValueError(
                f"overlap={self.overlap}: must lie in [0, {self.window // 2}], half of window={self.window}"
            )

    @classmethod
    def on(cls, size: tuple[int, int], transform: tuple[float, ...], window: int, overlap: int) -> "Windows":
        """Anchored where the CRS has its origin."""
        made = cls(size, window, overlap)
        column, row = ~Affine(*transform[:6]) * (0.0, 0.0)
        return cls(size, window, overlap, (round(row) % made.stride, round(column) % made.stride))

    @property
    def stride(self) -> int:
        return self.window - self.overlap

    @property
    def scene(self) -> Box:
        return Box(0, 0, *self.size)

    def touching(self, tile: Box) -> list[Box]:
        """Every window that has a pixel in the tile."""
        rows, columns = (
            range(first - self._before(first, phase), last, self.stride)
            for first, last, phase in (
                (tile.top, tile.bottom, self.phase[0]),
                (tile.left, tile.right, self.phase[1]),
            )
        )
        return [Box(row, column, row + self.window, column + self.window) for row in rows for column in columns]

    def _before(self, first: int, phase: int) -> int:
        """How far before `first` the earliest window begins that still reaches it."""
        since = (first - phase) % self.stride
        return since + (self.window - 1 - since) // self.stride * self.stride

    def weights(self) -> np.ndarray:
        """(window, window) float32: rises over the overlap, flat between, falls; over all windows they add up to one."""
        ramp = (np.arange(self.overlap) + 0.5) / max(self.overlap, 1)
        side = np.concatenate([ramp, np.ones(self.window - 2 * self.overlap), ramp[::-1]])
        return np.outer(side, side).astype(np.float32)

    def tiles(self, side: int) -> Iterator[Box]:
        """The scene in tiles of at most `side` pixels, row by row."""
        height, width = self.size
        for top in range(0, height, side):
            for left in range(0, width, side):
                yield Box(top, left, min(top + side, height), min(left + side, width))
