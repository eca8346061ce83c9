"""Geometric augmentation on the batch's device: crop, flip, quarter turns. Labels are never interpolated.

Everything is drawn from `batch.keys`, so a patch of an epoch looks the same in whichever batch, on whichever worker.
"""

import dataclasses

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


def augment(batch: Batch, config: AugmentConfig) -> Batch:
    """Random crop, flips and quarter turns, the same for every map of a patch.

    Raises ValueError when the crop is larger than the patch, or a patch that is not square would have to turn.
    """
    height, width = batch.labels.shape[-2:]
    crop_height, crop_width = _crop_size(config.crop, height, width)
    if config.rotate and crop_height != crop_width:
        raise ValueError(
            f"augment.rotate={config.rotate}: patches of {height} x {width} cannot make quarter turns; "
            "set augment.crop, or augment.rotate=0"
        )
    top = (uniform(batch.keys, 0) * (height - crop_height + 1)).long()
    left = (uniform(batch.keys, 1) * (width - crop_width + 1)).long()
    flip_rows, flip_columns = uniform(batch.keys, 2) < config.flip, uniform(batch.keys, 3) < config.flip
    turns = torch.where(uniform(batch.keys, 4) < config.rotate, 1 + (uniform(batch.keys, 5) * 3).long(), 0)
    index = _source_index(top, left, flip_rows, flip_columns, turns, (crop_height, crop_width), width)
    return _map(batch, lambda pixels: _pick(pixels, index, (crop_height, crop_width)))


def centre_crop(batch: Batch, crop: int | None) -> Batch:
    """The middle crop x crop pixels, for evaluation. Raises ValueError when the patch is smaller."""
    height, width = batch.labels.shape[-2:]
    crop_height, crop_width = _crop_size(crop, height, width)
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return _map(batch, lambda pixels: pixels[..., top : top + crop_height, left : left + crop_width])


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


def _source_index(
    top: Tensor,
    left: Tensor,
    flip_rows: Tensor,
    flip_columns: Tensor,
    turns: Tensor,
    size: tuple[int, int],
    width: int,
) -> Tensor:
    """(B, h w): which pixel of the flattened patch each pixel of the result is."""
    height, across = size
    row = torch.arange(height, device=top.device).view(1, -1, 1).expand(len(top), -1, across)
    column = torch.arange(across, device=top.device).view(1, 1, -1).expand(len(top), height, -1)
    turns = turns.view(-1, 1, 1)
    last = across - 1  # turns happen on squares only
    turned_row, turned_column = row, column
    for turn, source in ((1, (column, last - row)), (2, (last - row, last - column)), (3, (last - column, row))):
        turned_row = torch.where(turns == turn, source[0], turned_row)
        turned_column = torch.where(turns == turn, source[1], turned_column)
    turned_row = torch.where(flip_rows.view(-1, 1, 1), height - 1 - turned_row, turned_row)
    turned_column = torch.where(flip_columns.view(-1, 1, 1), last - turned_column, turned_column)
    return ((turned_row + top.view(-1, 1, 1)) * width + turned_column + left.view(-1, 1, 1)).flatten(1)


def _pick(pixels: Tensor, index: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels (B, ..., H, W) at `index`."""
    dtype = pixels.dtype
    if dtype == torch.uint16:  # torch cannot gather it
        pixels = pixels.view(torch.int16)
    lead = pixels.shape[1:-2]
    flat = pixels.reshape(len(pixels), -1, pixels.shape[-2] * pixels.shape[-1])
    picked = flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1))
    return picked.reshape(len(pixels), *lead, *size).view(dtype)


def _map(batch: Batch, change) -> Batch:
    def maybe(pixels: Tensor | None) -> Tensor | None:
        return None if pixels is None else change(pixels)

    return dataclasses.replace(
        batch,
        images={name: change(image) for name, image in batch.images.items()},
        labels=change(batch.labels),
        clean=maybe(batch.clean),
        valid=maybe(batch.valid),
        seasons=maybe(batch.seasons),
    )
