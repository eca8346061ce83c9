"""How much memory a downstream run takes on its device, and how many of them a GPU holds: counted, nothing is computed."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cromss.config import RunConfig, TransferConfig
from cromss.networks.heads import freeze
from cromss.sensors import sensor
from cromss.training.downstream import transfer_loss
from cromss.training.features import views_return

PROCESS = 1.5e9  # bytes that CUDA, its libraries and their workspaces take of a GPU for each process
SLACK = 1.2  # the allocator's blocks over the tensors in them
UNKNOWN = 2  # runs on a GPU of unknown memory
MOST = 8  # runs on a GPU: more wait for the CPU that reads for them


class Alive(TorchDispatchMode):
    """Bytes of the tensors that operators inside made: `now`, and at the `peak`. Meta tensors count as if they were real."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(_memory(leaf)) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and id(_memory(leaf)) not in given and _memory(leaf) not in self._known:
                self._born(_memory(leaf))
        return result

    def _born(self, memory: torch.UntypedStorage) -> None:
        size = memory.nbytes()
        self._known.add(memory)
        weakref.finalize(memory, self._gone, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, size: int) -> None:
        self.now -= size


def memory_of_transfer(
    config: TransferConfig, architecture: str, bands: int, size: tuple[int, int], mode: str, classes: int = 10
) -> int:  # fmt: skip
    """Bytes at the peak of a training step at `transfer.batch_size` on patches of `size` (height, width), in float32 (bfloat16
    takes less): weights, Adam's two moments, what the backward pass needs, and the whole of a features' cache that may fill.
    """
    with torch.random.fork_rng(devices=[]):
        network = config.head.build(architecture, bands, classes)
    if mode == "frozen":
        freeze(network.encoder, config.frozen_batchnorm)
    held = sum(_bytes(tensor) for tensor in network.state_dict().values())
    moments = 2 * sum(_bytes(parameter) for parameter in network.parameters() if parameter.requires_grad)
    network = network.train().to("meta")
    height, width = size if config.augment.crop is None else (config.augment.crop,) * 2
    with Alive() as alive:
        image = torch.empty(config.batch_size, bands, height, width, device="meta")
        labels = torch.empty(config.batch_size, height, width, dtype=torch.uint8, device="meta")
        transfer_loss(network(image).float(), labels).backward()
    cache = int(config.feature_cache_gb * 1e9) if views_return(config, mode, size) else 0
    return held + moments + alive.peak + cache


def transfers_per_gpu(
    config: RunConfig, gpu_memory: float | None, size: tuple[int, int] = (256, 256), classes: int = 10
) -> int:
    """How many downstream runs of `config`, the largest of them, a GPU of so many bytes holds at a time: 1 to 8; two where
    its memory is not known."""
    if gpu_memory is None:
        return UNKNOWN
    bands = max(len(sensor(name).select(config.data.bands.get(name, "all"))) for name in config.judged_modalities)
    each = max(
        memory_of_transfer(config.transfer, config.model.encoder, bands, size, mode, classes)
        for mode in config.transfer.trained_modes or ("frozen",)
    )
    return max(1, min(MOST, int(gpu_memory // (PROCESS + SLACK * each))))


def _memory(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
