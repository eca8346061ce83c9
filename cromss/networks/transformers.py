"""Plain vision transformers under the decoders and heads of this house, which read a pyramid.

A ViT keeps one resolution from its first block to its last. Li et al. 2022 (ViTDet, arXiv 2203.16527, section 3) need no
hierarchy: a "simple feature pyramid" made of the LAST map alone, brought to each scale, does as well. Theirs is resampled by
small convolutions; ours by interpolation and averaging, without a weight of its own: then whatever trains the encoder, a
segmentation or a self-supervised loss, trains the same weights, all of them, and a head of any depth finds them in the file.
SMP's own way, DPT, is a decoder of its own, for which middle fusion, the probe and the other heads would each need a case.
"""

import functools
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PREFIX = "tu-"  # timm's models, in SMP's names


class PlainViT(nn.Module):
    """image (B, C, H, W) -> depth + 1 features: the image, nothing (0 channels) at stride 2 as for every transformer of SMP,
    then the last block's map (D channels) at strides 4, 8, .. 2**depth.

    Height and width are multiples of the patch and of 2**depth. The interface is an SMP encoder's.
    """

    def __init__(self, name: str, depth: int = 5, output_stride: int = 32) -> None:
        super().__init__()
        self._name, self._depth, self._largest = name, depth, output_stride
        self.patch, self._dimensions = isotropic(name)
        self.out_channels = [3, 0, *[self._dimensions] * (depth - 1)]

    def set_in_channels(self, channels: int, pretrained: bool = False) -> None:
        """Build the transformer for so many channels: SMP says the number when it has made the encoder."""
        self.model = _transformer(self._name, channels)
        self.out_channels[0] = channels

    def make_dilated(self, output_stride: int) -> None:
        """No map coarser than `output_stride`."""
        self._largest = output_stride

    @property
    def output_stride(self) -> int:
        """What height and width must be divisible by."""
        return max(self.patch, min(2**self._depth, self._largest))

    def forward(self, image: Tensor) -> list[Tensor]:
        (features,) = self.model(image)
        height, width = image.shape[-2:]
        strides = [min(2**level, self._largest) for level in range(2, self._depth + 1)]
        pyramid = [_resampled(features, (height // stride, width // stride)) for stride in strides]
        return [image, image.new_empty(len(image), 0, height // 2, width // 2), *pyramid]


def _resampled(features: Tensor, size: tuple[int, int]) -> Tensor:
    if size[0] < features.shape[-2]:
        return F.adaptive_avg_pool2d(features, size)
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


def isotropic(name: str) -> tuple[int, int] | None:
    """(patch in pixels, dimensions) of a plain vision transformer of timm; None for any other encoder.

    Raises ValueError where such a transformer does not take images of any size.
    """
    return _looked_up(name) if name.startswith(PREFIX) else None


@functools.cache
def _looked_up(name: str) -> tuple[int, int] | None:
    import timm

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialisation has nothing to do on the meta device
        try:
            info = timm.create_model(name.removeprefix(PREFIX), features_only=True, pretrained=False).feature_info
        except (AssertionError, RuntimeError, TypeError, ValueError):
            return None  # whatever it is, the library refuses it in its own words
        strides, channels = info.reduction(), info.channels()
        if len(set(strides)) > 1 or len(strides) < 2:
            return None
        patch = strides[0]
        if patch & (patch - 1):
            raise ValueError(
                f"encoder {name}: patches of {patch} pixels have no place among strides 4, 8, 16, 32; take a transformer with "
                f"patches of 8, 16 or 32"
            )
        try:
            _transformer(name, 3)
        except TypeError:
            raise ValueError(
                f"encoder {name}: takes images of one size only; take a plain ViT (tu-vit_*, tu-deit*, tu-vit_*_dinov3), "
                f"mit_b0..5 or tu-convnext_*"
            ) from None
    return patch, channels[-1]


def _transformer(name: str, channels: int) -> nn.Module:
    import timm

    options: dict[str, Any] = {"features_only": True, "out_indices": (-1,), "dynamic_img_size": True}
    return timm.create_model(name.removeprefix(PREFIX), pretrained=False, in_chans=channels, **options)


def registered(name: str) -> str:
    """The name under which SMP builds the encoder `name`; plain transformers are added to its table of encoders."""
    if isotropic(name) is None:
        return name
    import segmentation_models_pytorch as smp

    own = f"plain-{name.removeprefix(PREFIX)}"
    smp.encoders.encoders.setdefault(own, {"encoder": PlainViT, "params": {"name": name}, "pretrained_settings": {}})
    return own
