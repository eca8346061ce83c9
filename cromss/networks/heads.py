"""Downstream networks: a pretrained encoder under a new head.

`head_depth` is the number of encoder stages a head sees; the stages behind it are dropped.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import pydantic
from torch import Tensor, nn

from cromss.networks.encoders import build_encoder, check_encoder_name, check_shapes, named_errors, some
from cromss.networks.segmenter import Segmenter, drop_unused, example_image
from cromss.networks.transformers import registered
from cromss.settings import Settings


class PSPNet(Settings):
    """Pyramid scene parsing on the last stage seen: the head of the paper's table.

    Its numbers come from `head_depth` 3, which is stem, layer1 and layer2 of a ResNet, 6 % of a ResNet-50.
    """

    kind: Literal["pspnet"] = "pspnet"
    head_depth: Literal[3, 4, 5] = 3

    def build(self, architecture: str, channels: int, classes: int) -> Segmenter:
        # The library's own upsampling fits depth 3 only and silently returns a quarter of the size at depth 5.
        return _built("PSPNet", architecture, channels, classes, self.head_depth, upsampling=2**self.head_depth)


class DeepLabV3Plus(Settings):
    """Atrous pyramid on the last stage at stride 16, refined by the features of stride 4."""

    kind: Literal["deeplabv3plus"] = "deeplabv3plus"
    head_depth: Literal[3, 4, 5] = 5

    def build(self, architecture: str, channels: int, classes: int) -> Segmenter:
        return _built("DeepLabV3Plus", architecture, channels, classes, self.head_depth)


class FPN(Settings):
    """Feature pyramid over the last four stages."""

    kind: Literal["fpn"] = "fpn"
    head_depth: Literal[4, 5] = 5
    channels: int = pydantic.Field(256, ge=64, multiple_of=64)  # of the pyramid; the segmentation blocks have half

    def build(self, architecture: str, channels: int, classes: int) -> Segmenter:
        if self.head_depth < 5 and 0 in build_encoder(architecture, channels, self.head_depth).out_channels:
            raise ValueError(
                f"transfer.head: fpn at head_depth={self.head_depth} reads stride 2, and {architecture} begins at stride 4; "
                f"set head_depth=5, or take pspnet"
            )
        widths = {"decoder_pyramid_channels": self.channels, "decoder_segmentation_channels": self.channels // 2}
        upsampling = 2 ** (self.head_depth - 3)
        return _built("FPN", architecture, channels, classes, self.head_depth, upsampling=upsampling, **widths)


class UPerNet(Settings):
    """Pyramid pooling on the last stage and a feature pyramid over all stages from stride 4 on."""

    kind: Literal["upernet"] = "upernet"
    head_depth: Literal[3, 4, 5] = 5

    def build(self, architecture: str, channels: int, classes: int) -> Segmenter:
        return _built("UPerNet", architecture, channels, classes, self.head_depth)


Head = Annotated[PSPNet | DeepLabV3Plus | FPN | UPerNet, pydantic.Field(discriminator="kind")]


def _built(name: str, architecture: str, channels: int, classes: int, depth: int, **options: Any) -> Segmenter:
    import segmentation_models_pytorch as smp  # seconds: not at --help

    build: Callable[..., nn.Module] = getattr(smp, name)
    with named_errors(architecture):
        model = build(
            registered(check_encoder_name(architecture)),
            encoder_depth=depth,
            encoder_weights=None,
            in_channels=channels,
            classes=classes,
            **options,
        )
        network = Segmenter(model.encoder, model.decoder, model.segmentation_head)
        drop_unused(network, example_image(channels))
    return network


def load_into(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy an encoder's state into `network` (a head's network, or an encoder itself), all or nothing.

    The network may use fewer stages than the state has, never more. Raises ValueError naming what is missing or of
    another shape.
    """
    encoder = network.encoder if isinstance(network, Segmenter) else network
    expected = encoder.state_dict()
    if missing := [name for name in expected if name not in state]:
        raise ValueError(
            f"the pretrained state lacks {len(missing)} of the encoder's {len(expected)} tensors ({some(missing)}): "
            "another architecture, or pretrained with fewer stages than head_depth"
        )
    check_shapes(expected, state, "the pretrained state")
    encoder.load_state_dict({name: state[name] for name in expected})


def freeze(module: nn.Module, batchnorm: Literal["adapt", "fixed"] = "adapt") -> None:
    """Exclude `module` from training, for good: a later `.train()` does not undo it.

    adapt  BatchNorm statistics keep following the data in training mode (the authors' code).
    fixed  they stay what pretraining left: BatchNorm layers remain in evaluation mode.
    """
    module.requires_grad_(False)
    if batchnorm == "fixed":
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not isinstance(layer, _Fixed):
                layer.__class__ = _fixed(type(layer))
                layer.eval()


class _Fixed(nn.Module):
    """In front of a BatchNorm class: `.train()` leaves it in evaluation mode."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)


@functools.cache
def _fixed(norm: type[nn.Module]) -> type[nn.Module]:
    return type(f"Fixed{norm.__name__}", (_Fixed, norm), {})
