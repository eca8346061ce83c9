"""Geometric augmentation on the batch's device: crop, flip, quarter turns. Labels are never interpolated.

Everything is drawn from `batch.keys`, so a patch of an epoch looks the same in whichever batch, on whichever worker.
"""

from dataclasses import dataclass

import pydantic
import torch
from torch import Tensor

from cromss.data.patch import Batch
from cromss.settings import Settings


class AugmentConfig(Settings):
    """Reference: random crop of 256 pixels, flips with probability .5 (each axis), rotation with probability .2."""

    crop: int | None = pydantic.Field(256, ge=1)  # pixels; None = the whole patch
    flip: float = pydantic.Field(0.5, ge=0, le=1)
    rotate: float = pydantic.Field(0.2, ge=0, le=1)


@dataclass(frozen=True)
class Draws:
    """What is drawn for B patches: a window, and one of the eight symmetries of the square for it.

    A window is read from its last row on (`rows_reversed`), from its last column on (`columns_reversed`), then transposed:
    every sequence of flips and quarter turns is one of these eight, and one only.

    top, left  (B,) int64, the window's corner in the patch
    transposed, rows_reversed, columns_reversed  (B,) bool
    size       (height, width) of the window
    """

    top: Tensor
    left: Tensor
    transposed: Tensor
    rows_reversed: Tensor
    columns_reversed: Tensor
    size: tuple[int, int]

    @property
    def views(self) -> Tensor:
        """(B,) int64 in 0..7, the symmetry's number; 0: the window as it is."""
        return 4 * self.transposed.long() + 2 * self.rows_reversed.long() + self.columns_reversed.long()


def augment(batch: Batch, config: AugmentConfig) -> Batch:
    """Random crop, flips and quarter turns, the same for every map of a patch.

    On the device of the labels, which is never waited for. Raises ValueError as `draw`.
    """
    keys = batch.keys.to(batch.labels.device, non_blocking=True)
    height, width = batch.labels.shape[-2:]
    draws = draw(keys, config, (height, width))
    index = _source_index(draws, width)
    return batch.with_maps(lambda pixels: _pick(pixels, index, draws.size))


def draw(keys: Tensor, config: AugmentConfig, size: tuple[int, int]) -> Draws:
    """What `augment` does to patches of `size` (height, width) with these keys (B,); computed on the keys' device.

    Raises ValueError when the crop is larger than the patch, or a patch that is not square would have to turn.
    """
    height, width = size
    crop_height, crop_width = _crop_size(config.crop, height, width)
    if config.rotate and crop_height != crop_width:
        raise ValueError(
            f"augment.rotate={config.rotate}: patches of {height} x {width} cannot make quarter turns; "
            "set augment.crop, or augment.rotate=0"
        )
    top = (uniform(keys, 0) * (height - crop_height + 1)).long()
    left = (uniform(keys, 1) * (width - crop_width + 1)).long()
    flip_rows, flip_columns = uniform(keys, 2) < config.flip, uniform(keys, 3) < config.flip
    turns = torch.where(uniform(keys, 4) < config.rotate, 1 + (uniform(keys, 5) * 3).long(), 0)
    return symmetry(flip_rows, flip_columns, turns, top=top, left=left, size=(crop_height, crop_width))


def symmetry(
    flip_rows: Tensor, flip_columns: Tensor, turns: Tensor, *, top: Tensor, left: Tensor, size: tuple[int, int]
) -> Draws:  # fmt: skip
    """The one symmetry that flips (B,) bool, then `turns` (B,) quarter turns counter-clockwise, amount to."""
    return Draws(
        top=top,
        left=left,
        transposed=turns % 2 == 1,
        rows_reversed=flip_rows ^ (turns >= 2),
        columns_reversed=flip_columns ^ ((turns == 1) | (turns == 2)),
        size=size,
    )


def crops(config: AugmentConfig, size: tuple[int, int]) -> bool:
    """Whether patches of `size` (height, width) are cropped at random: else an epoch shows one of eight views of them."""
    return _crop_size(config.crop, *size) != tuple(size)


def centre_crop(batch: Batch, crop: int | None) -> Batch:
    """The middle crop x crop pixels, for evaluation. Raises ValueError when the patch is smaller."""
    height, width = batch.labels.shape[-2:]
    crop_height, crop_width = _crop_size(crop, height, width)
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return batch.with_maps(lambda pixels: pixels[..., top : top + crop_height, left : left + crop_width])


def uniform(keys: Tensor, draw: int) -> Tensor:
    """The draw-th number in [0, 1) of each key, float64: splitmix64 (Steele et al. 2014) started at the key."""
    state = keys + _signed((draw + 1) * 0x9E3779B97F4A7C15)
    state = (state ^ _shift(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift(state, 27)) * _signed(0x94D049BB133111EB)
    state = state ^ _shift(state, 31)
    return _shift(state, 11).double() / 2**53


def _signed(number: int) -> int:
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number


def _shift(state: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch's is arithmetic."""
    return (state >> bits) & (2 ** (64 - bits) - 1)


def _crop_size(crop: int | None, height: int, width: int) -> tuple[int, int]:
    if crop is None:
        return height, width
    if crop > min(height, width):
        raise ValueError(
            f"augment.crop={crop}: the patches are {height} x {width}; set it to {min(height, width)} or less"
        )
    return crop, crop


def _source_index(draws: Draws, width: int) -> Tensor:
    """(B, h w): which pixel of the flattened patch, `width` pixels wide, each pixel of the result is.

    A sum of one term per row and one per column of the result.
    """
    height, across = draws.size
    row = _line(height, draws.top, draws.rows_reversed) * width
    column = _line(across, draws.left, draws.columns_reversed)
    if height == across:  # turns happen on squares only
        transposed = draws.transposed[:, None]
        row, column = torch.where(transposed, column, row), torch.where(transposed, row, column)
    return (row[:, :, None] + column[:, None, :]).flatten(1)


def _line(length: int, first: Tensor, reverse: Tensor) -> Tensor:
    """(B, length): first, first + 1, ..., the other way round where `reverse`."""
    steps = torch.arange(length, device=first.device)
    return first[:, None] + torch.where(reverse[:, None], length - 1 - steps, steps)


def _pick(pixels: Tensor, index: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels (B, ..., H, W) at `index`."""
    dtype = pixels.dtype
    if dtype == torch.uint16:  # torch cannot gather it
        pixels = pixels.view(torch.int16)
    lead = pixels.shape[1:-2]
    flat = pixels.reshape(len(pixels), -1, pixels.shape[-2] * pixels.shape[-1])
    picked = flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1))
    return picked.reshape(len(pixels), *lead, *size).view(dtype)
