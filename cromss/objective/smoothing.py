"""Spatio-temporal label smoothing (the journal version): labels drawn to their neighbours in space and season."""

from functools import lru_cache
from typing import Annotated, Literal

import pydantic
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from cromss.objective.confidence import IGNORE, Labels
from cromss.objective.losses import Targets, as_targets
from cromss.settings import Settings

Seasons = Integer[Tensor, "batch seasons height width"]


class NoSmoothing(Settings):
    """Labels as they are: the paper."""

    kind: Literal["none"] = "none"

    def __call__(self, labels: Labels, seasons: Seasons | None, classes: int) -> None:
        return None


class SpatioTemporal(Settings):
    """The authors' code: a share `a` of neighbourhood and season, a share `b` of the uniform distribution."""

    kind: Literal["spatio_temporal"] = "spatio_temporal"
    a: float = pydantic.Field(0.15, ge=0, le=1)
    b: float = pydantic.Field(0.05, ge=0, le=1)
    sigma: float = pydantic.Field(3.0, gt=0)  # pixels
    truncate: float = pydantic.Field(4.0, gt=0)  # the kernel ends at this many sigmas

    @pydantic.model_validator(mode="after")
    def _leaves_room_for_the_label(self) -> "SpatioTemporal":
        if self.a + self.b > 1:
            raise ValueError(f"objective.smoothing: a + b = {self.a + self.b:g} must not exceed 1; the default is 0.2")
        return self

    def __call__(self, labels: Labels, seasons: Seasons, classes: int) -> Targets:
        return smooth_labels(labels, seasons, classes, self.a, self.b, self.sigma, self.truncate)


Smoothing = Annotated[NoSmoothing | SpatioTemporal, pydantic.Field(discriminator="kind")]


def smooth_labels(
    labels: Labels,
    seasons: Seasons,
    classes: int,
    a: float = 0.15,
    b: float = 0.05,
    sigma: float = 3.0,
    truncate: float = 4.0,
    ignore_index: int = IGNORE,
) -> Targets:
    """y' = (1 - a - b) onehot(y) + a M + b/C, with M = (M_s + M_t) / 2; all zero at ignored pixels.

    labels   of the season that is trained on
    seasons  of all seasons of the location, that one included; ignored pixels count in no neighbourhood
    M_s is the Gaussian blur of the labels' one-hot, M_t that of the mean one-hot over the seasons, each renormalised
    over the classes. sigma is in pixels.
    """
    with torch.autocast(labels.device.type, enabled=False):
        onehot = as_targets(labels, classes, ignore_index)
        mean_onehot = torch.stack([as_targets(s, classes, ignore_index) for s in seasons.unbind(1)]).mean(0)
        in_space = _renormalised(gaussian_blur(onehot, sigma, truncate))
        in_time = _renormalised(gaussian_blur(mean_onehot, sigma, truncate))
        return blend(onehot, _renormalised(in_space + in_time), a, b)


def blend(onehot: Targets, prior: Targets, a: float, b: float) -> Targets:
    """(1 - a - b) onehot + a prior + b/C; all zero where `onehot` is."""
    smooth = (1 - a - b) * onehot + a * prior + b / onehot.shape[1]
    return smooth * (onehot.sum(1, keepdim=True) > 0)


def gaussian_blur(images: Targets, sigma: float, truncate: float) -> Targets:
    """Separable Gaussian of standard deviation `sigma` pixels, cut at `truncate` sigmas.

    Borders mirror with the edge pixel repeated (d c b a | a b c d | d c b a), scipy.ndimage's default "reflect";
    torch's own padding of that name does not repeat the edge.
    """
    rows, columns = (_blur_matrix(n, sigma, truncate, images.device, images.dtype) for n in images.shape[2:])
    return rows @ images @ columns.T


@lru_cache(maxsize=8)
def _blur_matrix(
    size: int, sigma: float, truncate: float, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "size size"]:
    """Blurring as a matrix: entry (i, j) is what pixel j, with its mirror images, contributes to pixel i."""
    radius = int(truncate * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    source = (torch.arange(size).unsqueeze(1) + offsets) % (2 * size)
    source = torch.minimum(source, 2 * size - 1 - source)
    matrix = torch.zeros(size, size, dtype=torch.double)
    return matrix.scatter_add_(1, source, (kernel / kernel.sum()).expand(size, -1)).to(device, dtype)


def _renormalised(shares: Targets) -> Targets:
    """Shares that sum to one over the classes; all zero stays all zero."""
    return shares / shares.sum(1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
