"""How the modalities share a network (the paper, section 3.1). Features are never concatenated.

    single   one U-Net, one modality
    middle   an encoder per modality, ONE decoder and head
    late     a whole U-Net per modality, nothing shared

Every network: images {modality: (B, C, H, W) float} -> logits {modality: (B, K, H, W)}.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cromss.networks.encoders import Backbone, build_encoder, named_errors
from cromss.networks.segmenter import Segmenter, drop_unused, example_image, require_divisible
from cromss.networks.transformers import registered
from cromss.sensors import sensor
from cromss.settings import Settings, suggest


def _several(modalities: tuple[str, ...]) -> tuple[str, ...]:
    for name in modalities:
        sensor(name)
    if len(modalities) < 2 or len(set(modalities)) < len(modalities):
        raise ValueError(
            f"modalities={','.join(modalities)}: fusion needs two or more, each once; for one use fusion.kind=single"
        )
    return modalities


Modalities = Annotated[tuple[str, ...], pydantic.AfterValidator(_several)]


class Single(Settings):
    """One U-Net on one modality."""

    kind: Literal["single"] = "single"
    modality: str = "s2"

    @pydantic.field_validator("modality")
    @classmethod
    def _known(cls, name: str) -> str:
        return sensor(name).name

    @property
    def modalities(self) -> tuple[str, ...]:
        return (self.modality,)

    def build(self, backbone: Backbone, channels: Mapping[str, int], classes: int) -> nn.Module:
        return _built(SeparateNetworks, self.modalities, backbone, channels, classes)


class Middle(Settings):
    """Encoders apart, decoder and head shared: the modalities pass in the order of `modalities`, S1 first.

    decoder_norm  what the shared decoder's BatchNorms remember for evaluation.
                  `shared`: one running mean and variance, a blend of the modalities (the authors' code).
                  `per_modality`: statistics of each modality's own; weights, and training itself, are unchanged.
    """

    kind: Literal["middle"] = "middle"
    modalities: Modalities = ("s1", "s2")
    decoder_norm: Literal["shared", "per_modality"] = "shared"

    def build(self, backbone: Backbone, channels: Mapping[str, int], classes: int) -> nn.Module:
        network = _built(SharedDecoder, self.modalities, backbone, channels, classes)
        if self.decoder_norm == "per_modality":
            _split_statistics(network.decoder, self.modalities)
        return network


class Late(Settings):
    """A U-Net per modality; only the objective lets them meet."""

    kind: Literal["late"] = "late"
    modalities: Modalities = ("s1", "s2")

    def build(self, backbone: Backbone, channels: Mapping[str, int], classes: int) -> nn.Module:
        return _built(SeparateNetworks, self.modalities, backbone, channels, classes)


Fusion = Annotated[Single | Middle | Late, pydantic.Field(discriminator="kind")]


class FusionNetwork(nn.Module):
    """Images in, logits out, keyed by modality. `logits` runs one modality alone.

    `side_by_side`: on a GPU, what the modalities do not share runs on a CUDA stream each.
    """

    modalities: tuple[str, ...]
    side_by_side = False

    def forward(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.side_by_side and images[self.modalities[0]].is_cuda:
            return _on_streams(self, images)
        return {modality: self.logits(modality, images[modality]) for modality in self.modalities}

    def logits(self, modality: str, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W)."""
        return self.shared(modality, self.alone(modality, image))

    def alone(self, modality: str, image: Tensor) -> Any:
        """The modality's own part of the network."""
        raise NotImplementedError

    def shared(self, modality: str, features: Any) -> Tensor:
        """What comes after it: the part that the modalities have in common, one after the other."""
        return features

    def encoder(self, modality: str) -> nn.Module:
        """The encoder of one modality. Raises ValueError for a modality this network was built without."""
        if modality not in self.modalities:
            raise ValueError(f"this network has no modality {modality!r}{suggest(modality, self.modalities)}")
        return self._encoder(modality)


class SeparateNetworks(FusionNetwork):
    """One U-Net per modality."""

    def __init__(self, backbone: Backbone, channels: Mapping[str, int], classes: int) -> None:
        super().__init__()
        self.modalities = tuple(channels)
        self.networks = nn.ModuleDict({name: _unet(backbone, count, classes) for name, count in channels.items()})

    def alone(self, modality: str, image: Tensor) -> Tensor:
        return self.networks[modality](image)

    def _encoder(self, modality: str) -> nn.Module:
        return self.networks[modality].encoder


class SharedDecoder(FusionNetwork):
    """One encoder per modality in front of one decoder."""

    def __init__(self, backbone: Backbone, channels: Mapping[str, int], classes: int) -> None:
        super().__init__()
        self.modalities = tuple(channels)
        first, *others = channels
        unet = _unet(backbone, channels[first], classes)
        others = {name: build_encoder(backbone.encoder, channels[name], backbone.depth) for name in others}
        self.encoders = nn.ModuleDict({first: unet.encoder, **others})
        self.decoder = unet.decoder
        self.head = unet.head

    def alone(self, modality: str, image: Tensor) -> list[Tensor]:
        require_divisible(image, self.encoders[modality])
        return self.encoders[modality](image)

    def shared(self, modality: str, features: list[Tensor]) -> Tensor:
        for module in self.decoder.modules():
            if isinstance(module, ModalityBatchNorm):
                module.modality = modality
        return self.head(self.decoder(features))

    def _encoder(self, modality: str) -> nn.Module:
        return self.encoders[modality]


class ModalityBatchNorm(nn.Module):
    """A BatchNorm whose weight and bias are shared and whose running statistics are each modality's own."""

    def __init__(self, norm: nn.BatchNorm2d, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.statistics = nn.ModuleDict(
            {name: nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, affine=False) for name in modalities}
        )
        self.modality = modalities[0]  # set before each pass

    def forward(self, features: Tensor) -> Tensor:
        own = self.statistics[self.modality]
        return F.batch_norm(
            features, own.running_mean, own.running_var, self.weight, self.bias, own.training, own.momentum, own.eps
        )


def _split_statistics(decoder: nn.Module, modalities: tuple[str, ...]) -> None:
    for module in list(decoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, ModalityBatchNorm(child, modalities))


def _on_streams(network: FusionNetwork, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Autograd runs the backward pass on the streams of the forward pass, by itself."""
    main, features = torch.cuda.current_stream(), {}
    streams = {modality: torch.cuda.Stream() for modality in network.modalities}
    for stream in streams.values():  # all fork from here, none from what another has enqueued
        stream.wait_stream(main)
    for modality, stream in streams.items():
        with torch.cuda.stream(stream):
            features[modality] = network.alone(modality, images[modality])
    for stream in streams.values():
        main.wait_stream(stream)
    for tensor in tree_leaves(features):
        tensor.record_stream(main)  # or the allocator would give it back to its stream while `shared` still reads it
    return {modality: network.shared(modality, features[modality]) for modality in network.modalities}


def _built(
    network: Callable[..., FusionNetwork],
    modalities: tuple[str, ...],
    backbone: Backbone,
    channels: Mapping[str, int],
    classes: int,
) -> FusionNetwork:
    if absent := [name for name in modalities if name not in channels]:
        raise ValueError(f"no channels for modality {', '.join(absent)}; the data has {', '.join(channels)}")
    built = network(backbone, {name: channels[name] for name in modalities}, classes)
    with named_errors(backbone.encoder):
        drop_unused(built, {name: example_image(channels[name]) for name in modalities})
    return built


def _unet(backbone: Backbone, channels: int, classes: int) -> Segmenter:
    import segmentation_models_pytorch as smp  # seconds: not at --help

    with named_errors(backbone.encoder):
        unet = smp.Unet(
            registered(backbone.encoder),
            encoder_depth=backbone.depth,
            encoder_weights=None,
            decoder_channels=backbone.decoder_channels,
            in_channels=channels,
            classes=classes,
        )
    return Segmenter(unet.encoder, unet.decoder, unet.segmentation_head)
