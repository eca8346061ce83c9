"""What a piece of a run computes and moves: counted operator by operator on the meta device, where nothing is computed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from cromss.config import RunConfig
from cromss.costs.hardware import Hardware
from cromss.costs.traffic import Traffic

ADAM_BYTES = 28  # of a float32 weight: itself, its gradient and two moments read, three of them written
MASTER_BYTES = 16  # held for a weight: itself, its gradient, two moments
LOGIT_TRIPS = 3  # a fused objective reads the logits forward and backward, and writes their gradient


@dataclass(frozen=True)
class Operator:
    """One kernel of eager torch: what it computes, and what it reads and writes."""

    flop: float
    bytes: float


@dataclass(frozen=True)
class Work:
    """FLOP and bytes of a piece of a run, by operator; weights it trains or uses; bytes that backward waits for."""

    operators: tuple[Operator, ...]
    parameters: int = 0
    saved: float = 0.0
    other_bytes: float = 0.0  # moved by what is no operator of the network: input, fused objective, optimizer

    @property
    def flop(self) -> float:
        """Of convolutions and matrix products, two a multiply-add."""
        return sum(one.flop for one in self.operators)

    @property
    def bytes(self) -> float:
        """That eager torch moves."""
        return sum(one.bytes for one in self.operators) + self.other_bytes

    @property
    def fused_bytes(self) -> float:
        """That would remain if everything were fused into the convolutions and matrix products."""
        return sum(one.bytes for one in self.operators if one.flop) + self.other_bytes

    def seconds(self, on: Hardware, compute: float = 1.0, memory: float = 1.0, fused: bool = False) -> float:
        """The roofline, operator by operator: each takes as long as its arithmetic or its bytes, whichever is longer.

        compute, memory   shares of the two peaks that are reached;  fused   only what `fused_bytes` counts is moved
        """
        kept = [one for one in self.operators if one.flop or not fused]
        speed, rate = on.flops * compute, on.bandwidth * memory
        return sum(max(one.flop / speed, one.bytes / rate) for one in kept) + self.other_bytes / rate

    def limit(self, on: Hardware, compute: float = 1.0, memory: float = 1.0) -> str:
        """`compute` or `memory`: which of the two takes the larger part of `seconds`."""
        speed, rate = on.flops * compute, on.bandwidth * memory
        bound = sum(one.flop / speed for one in self.operators if one.flop / speed > one.bytes / rate)
        return "compute" if bound > self.seconds(on, compute, memory) / 2 else "memory"


def training_step(
    config: RunConfig,
    channels: dict[str, int],
    classes: int,
    pairs: int,
    size: int,
    dtype: torch.dtype = torch.bfloat16,
) -> Work:
    """A pretraining step of `pairs` S1+S2 pairs of size x size pixels on one worker, the networks in `dtype`.

    Augmentation's indices, the input's scaling and a fused objective are added by what they must read and write.
    """
    pixels = pairs * size**2
    network = config.model.fusion.build(config.model, channels, classes).to("meta").to(dtype)
    images = {name: _image(pairs, count, size, dtype) for name, count in channels.items()}
    weights = sum(parameter.numel() for parameter in network.parameters())
    bands = sum(channels.values())
    # codes read and cropped, where from (an index of 8 bytes, by modality), scaled in float32, cast
    scaled = pixels * (bands * (1 + 1 + 4 + dtype.itemsize) + 8 * len(channels))
    objective = LOGIT_TRIPS * pixels * classes * len(channels) * dtype.itemsize
    operators, saved = counted_operators(lambda: _forward_backward(network, images))
    return Work(operators, weights, saved, scaled + objective + ADAM_BYTES * weights)


def validation_step(
    config: RunConfig,
    channels: dict[str, int],
    classes: int,
    pairs: int,
    size: int,
    dtype: torch.dtype = torch.bfloat16,
) -> Work:
    """A forward pass of the networks."""
    network = config.model.fusion.build(config.model, channels, classes).to("meta").to(dtype).eval()
    images = {name: _image(pairs, count, size, dtype) for name, count in channels.items()}
    with torch.no_grad():
        operators, _ = counted_operators(lambda: network(images))
    return Work(operators, sum(parameter.numel() for parameter in network.parameters()))


def transfer_step(
    config: RunConfig,
    mode: str,
    channels: int,
    classes: int,
    images: int,
    size: int,
    dtype: torch.dtype = torch.float32,
) -> Work:
    """A step of a downstream run: of a frozen encoder only the forward pass, and no gradient."""
    network = config.transfer.head.build(config.model.encoder, channels, classes).to("meta").to(dtype)
    if mode == "frozen":
        network.encoder.requires_grad_(False)
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    image = _image(images, channels, size, dtype)
    operators, saved = counted_operators(lambda: _forward_backward(network, image))
    return Work(
        operators, trained, saved, ADAM_BYTES * trained + LOGIT_TRIPS * images * size**2 * classes * dtype.itemsize
    )


def scoring_step(
    config: RunConfig, channels: int, classes: int, images: int, size: int, dtype: torch.dtype = torch.float32
) -> Work:
    """A forward pass of a downstream network."""
    network = config.transfer.head.build(config.model.encoder, channels, classes).to("meta").to(dtype).eval()
    with torch.no_grad():
        operators, _ = counted_operators(lambda: network(_image(images, channels, size, dtype)))
    return Work(operators, sum(parameter.numel() for parameter in network.parameters()))


def encoding_step(config: RunConfig, channels: int, images: int, size: int, head: bool = False) -> Work:
    """A forward pass of an encoder in float32: the pretrained one's, or (`head`) of those stages that the head reads."""
    from cromss.networks.encoders import build_encoder

    if head:
        encoder = config.transfer.head.build(config.model.encoder, channels, 2).encoder
    else:
        encoder = build_encoder(config.model.encoder, channels, config.model.depth)
    encoder = encoder.to("meta").eval()
    with torch.no_grad():
        operators, _ = counted_operators(lambda: encoder(_image(images, channels, size, torch.float32)))
    return Work(operators, sum(parameter.numel() for parameter in encoder.parameters()))


class _Operators(TorchDispatchMode):
    """The operators inside, each with its FLOP and bytes, as `Traffic` counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Operator] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with Traffic() as traffic:
            result = func(*args, **(kwargs or {}))
        if traffic.operators:
            count = flop_registry.get(func._overloadpacket)
            flop = count(*args, **(kwargs or {}), out_val=result) if count else 0
            self.found.append(Operator(float(flop), float(traffic.bytes)))
        return result


def counted_operators(work: Callable[[], Any]) -> tuple[tuple[Operator, ...], float]:
    """(operators, bytes saved for the backward pass, weights left out) of calling `work` on meta tensors."""
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter):
            saved[storage._cdata] = storage  # held, so that its address is nobody else's
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _Operators() as operators:
        work()
    return tuple(operators.found), float(sum(storage.nbytes() for storage in saved.values()))


def _forward_backward(network: nn.Module, images: Any) -> None:
    found = network(images)
    logits = list(found.values()) if isinstance(found, dict) else [found]
    torch.autograd.backward(logits, [torch.empty_like(z) for z in logits])


def _image(count: int, channels: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(count, channels, size, size, device="meta", dtype=dtype)
