"""What a training is made of: its network and optimizer, how stored pixels become its input, in which precision it computes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cromss.data.patch import Batch
from cromss.networks.scaling import Scaling
from cromss.sensors import sensor


@dataclass
class Training:
    """Everything that a checkpoint must bring back."""

    network: nn.Module  # as trained: wrapped by DDP where there are several workers
    optimizer: torch.optim.Optimizer
    scheduler: Any  # a torch LR scheduler, stepped once an epoch
    step: int = 0
    average: nn.Module | None = None  # running mean of the network's weights, where the run keeps one

    @property
    def module(self) -> nn.Module:
        """The network without its DDP wrapper."""
        return self.network.module if hasattr(self.network, "module") else self.network


@dataclass(frozen=True)
class Inputs:
    """How stored pixels become network input: bands per modality, the store's encoding, the scaling."""

    bands: dict[str, tuple[str, ...]]
    encoding: str
    scaling: Scaling

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        """modality -> float (B,C,H,W), channels last in memory. Raises ValueError for a batch of other bands."""
        for name, bands in self.bands.items():
            if batch.bands.get(name) != bands:
                raise ValueError(
                    f"{name}: the network reads {', '.join(bands)}, the batch holds "
                    f"{', '.join(batch.bands.get(name, ('nothing',)))}; valid names: {', '.join(sensor(name).bands)}"
                )
        return {
            name: self.scaling(batch.images[name], sensor(name), bands, self.encoding).contiguous(
                memory_format=torch.channels_last
            )
            for name, bands in self.bands.items()
        }


def device_precision(device: torch.device, precision: str) -> torch.dtype:
    """The autocast type of a run: bfloat16 where it was asked for or, under `auto`, where the GPU has it."""
    capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and capable) else torch.float32


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of the network's forward pass."""
    dtype = device_precision(device, precision)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16)
