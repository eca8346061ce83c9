"""Masked image modelling: SimMIM (Xie et al. 2022, arXiv 2111.09886), for encoders of any family."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cromss.networks.encoders import Backbone
from cromss.networks.selfsupervised import Branch, SelfSupervised, trainable_encoder
from cromss.networks.views import Draw
from cromss.settings import Settings


class MIM(Settings):
    """SimMIM: squares of the image are hidden, the encoder and a one-layer head say what was there; L1 on the hidden pixels.

    ratio   share of the squares that is hidden (SimMIM: 0.6)
    square  pixels; None: 32 as in SimMIM where the crop allows it (192 there, six squares across), else about a sixth of it
    Convolutions know no tokens: a hidden square is filled with one learned value per band, before the first layer.
    """

    kind: Literal["mim"] = "mim"
    title: ClassVar[str] = "MIM"
    trains: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = False

    ratio: float = pydantic.Field(0.6, gt=0, lt=1)
    square: int | None = pydantic.Field(None, ge=1)

    def require(self) -> None:
        """Needs nothing but torch."""

    def build(self, backbone: Backbone, channels: Mapping[str, int], places: int) -> SelfSupervised:
        """The network, with random weights. `places` is of no interest here."""
        return SelfSupervised({name: Reconstruction(backbone, count) for name, count in channels.items()})

    def views(self, image: Tensor, valid: Tensor | None, draw: Draw) -> tuple[Tensor, ...]:
        """(image, hidden, asked): (B, 1, H, W) bool, True where the image is hidden, and where it is to be told: hidden, and
        `valid` (B, H, W)."""
        hidden = masks(draw, self._square_for(image.shape[-2:]), image.shape[-2:], self.ratio)
        return image, hidden, hidden if valid is None else hidden & valid[:, None]

    def _square_for(self, size: tuple[int, int]) -> int:
        side = min(size)
        square = self.square or 2 ** max(0, min(5, int(side / 6).bit_length() - 1))
        if any(length % square for length in size):
            raise ValueError(
                f"pretraining.square={square}: must divide the image, {size[0]} x {size[1]} pixels; or leave it out"
            )
        return square


def masks(draw: Draw, square: int, size: tuple[int, int], ratio: float) -> Tensor:
    """(B, 1, H, W) bool: of the squares of each image, exactly round(ratio n), and at least one, is True."""
    rows, columns = size[0] // square, size[1] // square
    count = max(1, round(ratio * rows * columns))
    order = draw(0, rows * columns).argsort(1).argsort(1)
    hidden = (order < count).view(-1, 1, rows, columns)
    return hidden.repeat_interleave(square, 2).repeat_interleave(square, 3)


class Reconstruction(Branch):
    """Encoder, and a head of one layer: the last stage's pixel becomes the square of image that it stands for."""

    def __init__(self, backbone: Backbone, channels: int) -> None:
        super().__init__()
        self.encoder = trainable_encoder(backbone, channels)
        self.token = nn.Parameter(torch.zeros(channels))
        self.stride = 2**backbone.depth
        self.head = nn.Conv2d(self.encoder.out_channels[-1], channels * self.stride**2, 1)

    def forward(self, views: tuple[Tensor, ...]) -> Tensor:
        """(image, hidden, asked) -> the mean absolute error at the pixels asked for."""
        image, hidden, asked = views
        said = self.reconstructed(torch.where(hidden, self.token[:, None, None], image))
        return masked_l1(said.float(), image, asked)

    def reconstructed(self, image: Tensor) -> Tensor:
        """The whole image, hidden or not, as the network imagines it: (B, C, H, W)."""
        said = F.pixel_shuffle(self.head(self.encoder(image)[-1]), self.stride)
        return said[..., : image.shape[-2], : image.shape[-1]]

    def handed_on(self) -> nn.Module:
        return self.encoder


def masked_l1(said: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Mean |said - image| over the bands of the pixels where `mask` (B, 1, H, W) is True; 0 where it never is."""
    error = (said - image).abs().mean(1, keepdim=True)
    return (error * mask).sum() / mask.sum().clamp(min=1)
