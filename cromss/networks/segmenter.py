"""Encoder, decoder, head: the shape of every network here, and two rules that all of them keep."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Segmenter(nn.Module):
    """image (B, C, H, W) -> logits (B, K, H, W). The parts come from a segmentation-models-pytorch network."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        require_divisible(image, self.encoder)
        return self.head(self.decoder(self.encoder(image)))


def require_divisible(image: Tensor, encoder: nn.Module) -> None:
    """Raises ValueError unless height and width of `image` are multiples of the encoder's stride."""
    stride = encoder.output_stride
    size = tuple(image.shape[-2:])
    if any(side % stride for side in size):
        height, width = (max(stride, round(side / stride) * stride) for side in size)
        raise ValueError(
            f"image size {size[0]}x{size[1]}: must be divisible by the encoder's stride {stride}; "
            f"the nearest valid size is {height}x{width}"
        )


def drop_unused(network: nn.Module, example: Tensor | Mapping[str, Tensor]) -> None:
    """Remove the layers that no gradient reaches, such as a ResNet's layer3 and layer4 behind a head of depth 3.

    DistributedDataParallel would wait for their gradients, and a checkpoint would carry weights that never ran.
    """
    _prune(network, "", used(network, example))


def used(network: nn.Module, example: Tensor | Mapping[str, Tensor]) -> set[str]:
    """Names of the parameters that a gradient reaches.

    They are found by one step on the meta device, which computes shapes and no numbers; `example` lies there.
    """
    tensors = on_meta(network)
    parameters = {name: tensors[name].requires_grad_() for name, _ in network.named_parameters()}
    logits = functional_call(network, tensors, (example,))
    sum(each.sum() for each in (logits.values() if isinstance(logits, Mapping) else [logits])).backward()
    return {name for name, parameter in parameters.items() if parameter.grad is not None}


def on_meta(network: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, those that no state dict holds too, as tensors without numbers."""
    return {
        name: tensor.detach().to("meta")
        for name, tensor in (
            *network.named_parameters(remove_duplicate=False),
            *network.named_buffers(remove_duplicate=False),
        )
    }


class Dropped(nn.Identity):
    """In the place of a layer that was removed. Some encoders hand their layers more than the features."""

    def forward(self, features: Tensor, *more: Any) -> Tensor:
        return features


def _prune(module: nn.Module, prefix: str, used: set[str]) -> None:
    for name, child in module.named_children():
        parameters = {f"{prefix}{name}.{key}" for key, _ in child.named_parameters()}
        if parameters and not parameters & used:
            setattr(module, name, Dropped())
        elif parameters - used:
            _prune(child, f"{prefix}{name}.", used)


def example_image(channels: int) -> Tensor:
    """A meta image: two of 64x64 suit every stride, and no normalisation is left with a single value."""
    return torch.empty(2, channels, 64, 64, device="meta")
