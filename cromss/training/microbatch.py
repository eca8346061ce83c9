"""How many pairs a worker computes at a time: as many as fit into its memory. What it trains on never changes."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torch.func import functional_call

from cromss.config import RunConfig
from cromss.networks.segmenter import on_meta
from cromss.training.footprint import Alive
from cromss.training.state import autocast, device_precision

SHARE = 0.8  # of the free memory: the rest is the allocator's, the objective's, and other people's


@dataclass(frozen=True)
class Need:
    """Bytes of a forward and backward pass: `fixed`, and for every pair."""

    fixed: float
    pair: float

    def of(self, pairs: int) -> float:
        return self.fixed + self.pair * pairs

    def fitting(self, rows: int, room: float) -> int:
        """The largest of rows, rows/2, rows/3, ... that fits into `room` bytes; 0 where not even a pair does."""
        return next((size for size in sizes(rows) if self.of(size) <= room), 0)


def sizes(rows: int) -> list[int]:
    """The ways of cutting `rows` into equal pieces, but for the last: from one piece down to single rows."""
    return sorted({-(-rows // pieces) for pieces in range(1, rows + 1)}, reverse=True)


def choose(
    config: RunConfig, network: nn.Module, channels: dict[str, int], rows: int, size: tuple[int, int],
    device: torch.device, say: Callable[[str], None] = lambda line: None,
) -> int | None:  # fmt: skip
    """`scaling.micro_batch` as a number of pairs, None for all `rows` of a worker at once; patches of `size` pixels.

    `auto`: what a pass needs is counted on the meta device and held against the free memory; on a GPU it is then tried.
    Every worker takes the smallest worker's choice. Raises ValueError where not even one pair fits.
    """
    wanted = config.scaling.micro_batch
    if wanted != "auto":
        return wanted if wanted is not None and wanted < rows else None
    precision = device_precision(device, config.optim.precision)
    need, room = needed(network, channels, size, precision), SHARE * free(device)
    fits = need.fitting(rows, room)
    while device.type == "cuda" and fits and not _tried(config, network, channels, fits, size, device):
        fits = next((smaller for smaller in sizes(rows) if smaller < fits), 0)
    fits = _least(fits, device)
    if not fits:
        raise ValueError(
            f"scaling.micro_batch=auto: one pair of {size[0]} x {size[1]} pixels needs {need.of(1) / 1e9:.1f} GB, "
            f"{room / 1e9:.1f} GB are free for it; a smaller data.augment.crop or model.encoder needs less"
        )
    say(
        f"micro-batch: {fits} of {rows} pairs at a time (auto: {need.of(fits) / 1e9:.2f} GB counted, {room / 1e9:.1f} GB free "
        f"for it)"
    )
    return fits if fits < rows else None


def needed(network: nn.Module, channels: dict[str, int], size: tuple[int, int], dtype: torch.dtype) -> Need:
    """Counted at the peak of passes over two and four pairs, on the meta device: nothing is computed."""
    state = on_meta(network)
    weights = {name for name, _ in network.named_parameters()}
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    state = {name: tensor.requires_grad_(name in weights) for name, tensor in state.items()}
    peaks = []
    for pairs in (2, 4):
        with Alive() as alive:
            images = {name: torch.empty(pairs, n, *size, dtype=dtype, device="meta") for name, n in channels.items()}
            logits = list(functional_call(network, state, (images,)).values())
            torch.autograd.backward(logits, [torch.empty_like(z) for z in logits])
        for tensor in state.values():
            tensor.grad = None
        peaks.append(alive.peak)
    pair = (peaks[1] - peaks[0]) / 2
    return Need(max(peaks[0] - 2 * pair, 0.0), pair)


def free(device: torch.device) -> float:
    """Bytes that this process may still take of the device's memory, or its share of the machine's."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _tried(
    config: RunConfig, network: nn.Module, channels: dict[str, int], pairs: int, size: tuple[int, int],
    device: torch.device,
) -> bool:  # fmt: skip
    """Whether a pass runs; the network is left as it was found."""
    kept = [buffer.clone() for buffer in network.buffers()]
    try:
        images = {name: torch.zeros(pairs, n, *size, device=device) for name, n in channels.items()}
        with autocast(device, config.optim.precision):
            logits = list(network(images).values())
        torch.autograd.backward(logits, [torch.zeros_like(z) for z in logits])
        return True
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        network.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        for buffer, before in zip(network.buffers(), kept, strict=True):
            buffer.copy_(before)


def _least(number: int, device: torch.device) -> int:
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return number
    smallest = torch.tensor(number, device=device)
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return int(smallest)
