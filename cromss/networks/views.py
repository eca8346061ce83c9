"""Two views of a patch that show the same land: what contrastive and self-distilling pretraining compare.

Everything is drawn by `draw(number, count)`, (B, count) numbers in [0, 1) of each patch, so that a view depends on the patch
and its epoch, never on the batch or the worker. Images are the network's input, float32 (B, C, H, W), and stay on their device.
"""

import math
from collections.abc import Callable

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from cromss.settings import Settings

Draw = Callable[[int, int], Tensor]

PER_VIEW = 1000  # numbers set aside for each view
_RADIUS = 4  # pixels on either side that the blur looks at


class Views(Settings):
    """Random resized crop, flips, quarter turns; then brightness and contrast of every band, grey, blur.

    The recipe of MoCo v2 (Chen et al. 2020, arXiv 2003.04297) as SSL4EO-S12 (Wang et al. 2023, arXiv 2211.07044) takes it to
    Sentinel-1 and -2: no hue and no saturation, which bands beyond the visible do not have. Quarter turns are added, because
    land seen from above has no upright; grey (the mean of the bands in all of them) is for three bands or more.
    A view's two patches are of one season: a batch holds one.
    """

    scale: tuple[float, float] = (0.2, 1.0)  # share of the patch's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # of width and height
    flip: float = pydantic.Field(0.5, ge=0, le=1)
    turn: bool = True
    jitter: float = pydantic.Field(0.8, ge=0, le=1)  # probability of brightness and contrast
    brightness: float = pydantic.Field(0.4, ge=0, lt=1)
    contrast: float = pydantic.Field(0.4, ge=0, lt=1)
    grey: float = pydantic.Field(0.2, ge=0, le=1)
    blur: float = pydantic.Field(0.5, ge=0, le=1)
    sigma: tuple[float, float] = (0.1, 2.0)  # pixels

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "Views":
        for name in ("scale", "ratio", "sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name == "scale" and high > 1):
                raise ValueError(
                    f"{name}=({low}, {high}): must rise from above 0" + (" to 1 at most" * (name == "scale"))
                )
        return self

    def __call__(self, image: Tensor, draw: Draw, view: int, size: int | None = None) -> Tensor:
        """The view-th view of every patch, `size` pixels wide and high (default: as large as the patch)."""
        first = view * PER_VIEW
        image = self._looked_at(image, lambda number, count: draw(first + number, count), size)
        return self._recoloured(image, lambda number, count: draw(first + 10 + number, count)).contiguous(
            memory_format=torch.channels_last
        )

    def _looked_at(self, image: Tensor, draw: Draw, size: int | None) -> Tensor:
        """Crop, resize, flip and turn at once: one affine map per patch, read by bilinear interpolation."""
        area, stretch, across, down, flip_columns, flip_rows, turns = draw(0, 7).float().unbind(1)
        area = self.scale[0] + area * (self.scale[1] - self.scale[0])
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        stretch = torch.exp(low + stretch * (high - low))
        width, height = (area * stretch).sqrt().clamp(max=1), (area / stretch).sqrt().clamp(max=1)
        x, y = (1 - width) * (2 * across - 1), (1 - height) * (2 * down - 1)  # the window's middle, in -1..1
        mirror_x = torch.where(flip_columns < self.flip, -1.0, 1.0)
        mirror_y = torch.where(flip_rows < self.flip, -1.0, 1.0)
        quarter = (turns * 4).floor() * (math.pi / 2) * self.turn
        cosine, sine = quarter.cos().round(), quarter.sin().round()
        where = torch.stack(
            [
                torch.stack([width * mirror_x * cosine, -width * mirror_x * sine, x], 1),
                torch.stack([height * mirror_y * sine, height * mirror_y * cosine, y], 1),
            ],
            1,
        )
        shape = (*image.shape[:2], *((size, size) if size else image.shape[-2:]))
        grid = F.affine_grid(where, shape, align_corners=False)
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def _recoloured(self, image: Tensor, draw: Draw) -> Tensor:
        bands = image.shape[1]
        whether = draw(0, 4).float()[:, :, None, None, None].unbind(1)  # (B, 1, 1, 1) each
        strength = draw(10, 2 * bands).float().view(-1, 2, bands, 1, 1) * 2 - 1
        bright, contrast = 1 + self.brightness * strength[:, 0], 1 + self.contrast * strength[:, 1]
        mean = image.mean((2, 3), keepdim=True)
        jittered = ((image - mean) * contrast + mean) * bright
        image = torch.where(whether[0] < self.jitter, jittered, image)
        if bands >= 3:
            image = torch.where(whether[1] < self.grey, image.mean(1, keepdim=True), image)
        sigma = self.sigma[0] + whether[3] * (self.sigma[1] - self.sigma[0])
        return torch.where(whether[2] < self.blur, blurred(image, sigma), image) if self.blur else image


def blurred(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur, cut off at 4 pixels, of (B, C, H, W) by `sigma` (B, 1, 1, 1) pixels; borders are mirrored."""
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, device=image.device)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = (weights / weights.sum(-1, keepdim=True))[..., None]  # (B, 1, 1, taps, 1)
    for axis in (2, 3):
        length = image.shape[axis]
        padded = F.pad(image, (0, 0, _RADIUS, _RADIUS) if axis == 2 else (_RADIUS, _RADIUS, 0, 0), mode="reflect")
        image = sum(weights[:, :, :, tap] * padded.narrow(axis, tap, length) for tap in range(len(offsets)))
    return image
