"""A frozen encoder runs once for each view of a patch: flips and quarter turns make eight at most, whatever the epochs.

Only where that changes nothing: the encoder must give an image the same features in whichever step and batch. One whose
BatchNorm adapts does not, nor one that drops out; random crops never come back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from cromss.config import TransferConfig
from cromss.data.augment import crops
from cromss.data.patch import Batch
from cromss.networks.segmenter import Segmenter, example_image, on_meta, require_divisible

Key = tuple[str, int]  # patch id, view


class FeatureCache:
    """Features of one view of one patch, by (patch id, view): at most `limit` bytes.

    Once something did not fit it takes nothing new and forgets nothing: what it holds depends on the order of the rows only.
    """

    def __init__(self, limit: float) -> None:
        self.limit, self.bytes, self.full = limit, 0, False
        self._held: dict[Key, tuple[Tensor, ...]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Key) -> tuple[Tensor, ...] | None:
        """The stages (C, h, w) of a view; None where it is not held."""
        return self._held.get(key)

    def offer(self, key: Key, stages: Sequence[Tensor]) -> None:
        """Keep a copy, as the type and in the memory order it comes in, if there is room."""
        size = sum(stage.numel() * stage.element_size() for stage in stages)
        self.full = self.full or self.bytes + size > self.limit
        if not self.full:
            self._held[key] = tuple(stage.clone() for stage in stages)  # a view would hold the whole batch
            self.bytes += size


@dataclass(frozen=True)
class Reading:
    """What a head reads of its encoder: the numbers of the `stages`, of `count`; `random`: the encoder, in the mode that it
    is in, draws random numbers."""

    stages: tuple[int, ...]
    count: int
    random: bool


class CachedEncoder:
    """A frozen encoder and what it said: `passes` = images it was run on, `saved` = images it was not run on again.

    Stages that the head does not read are not kept and come out as None.
    """

    def __init__(self, encoder: nn.Module, read: Reading, limit: float) -> None:
        self.cache, self.passes, self.saved = FeatureCache(limit), 0, 0
        self._encoder, self._read = encoder, read

    @torch.no_grad()
    def __call__(
        self, ids: Sequence[str], views: Sequence[int], pixels: Callable[[list[int]], Tensor]
    ) -> list[Tensor | None]:  # fmt: skip
        """The encoder's stages, (B, C, h, w) each, of views of patches.

        pixels  rows -> the network input of these rows, asked for once at most
        """
        keys = list(zip(ids, views, strict=True))
        held = {key: self.cache.get(key) for key in keys}
        first = {key: row for row, key in reversed(list(enumerate(keys))) if held[key] is None}
        rows = sorted(first.values())
        if len(rows) == 1 < len(keys):  # a batch of one is rounded otherwise: it takes another row along
            rows = sorted((rows[0], (rows[0] + 1) % len(keys)))
        self.passes, self.saved = self.passes + len(rows), self.saved + len(keys) - len(rows)
        computed = self._encode(pixels(rows)) if rows else []
        for position, row in enumerate(rows):
            if held[keys[row]] is None:
                held[keys[row]] = own = tuple(stage[position] for stage in computed)
                self.cache.offer(keys[row], own)
        if len(rows) == len(keys):
            return self._at_their_places(computed)
        together = zip(*(held[key] for key in keys), strict=True)
        return self._at_their_places([_stacked(stage) for stage in together])

    def _encode(self, image: Tensor) -> list[Tensor]:
        require_divisible(image, self._encoder)
        stages = self._encoder(image)
        return [stages[number] for number in self._read.stages]

    def _at_their_places(self, stages: Sequence[Tensor]) -> list[Tensor | None]:
        given: list[Tensor | None] = [None] * self._read.count
        for number, stage in zip(self._read.stages, stages, strict=True):
            given[number] = stage
        return given


def views_return(config: TransferConfig, mode: str, size: tuple[int, int]) -> bool:
    """Whether a training asks a fixed encoder for the same views of patches of `size` again, and may keep the answers."""
    fixed = mode == "frozen" and config.frozen_batchnorm == "fixed"
    return fixed and config.epochs > 1 and config.feature_cache_gb > 0 and not crops(config.augment, size)


def cached_encoder(
    network: Segmenter, config: TransferConfig, mode: str, size: tuple[int, int], channels: int
) -> CachedEncoder | None:
    """The encoder of `network`, in training mode, with a cache for one training on patches of `size`; None where a cache
    would change the result, or never be read again.

    The test patches are scored past it: each is seen once in a training.
    """
    if not views_return(config, mode, size):
        return None
    read = reading(network, channels)
    if read.random or _mixes_the_batch(network.encoder):
        return None
    return CachedEncoder(network.encoder, read, config.feature_cache_gb * 1e9)


def reading(network: Segmenter, channels: int) -> Reading:
    """Found by one step on the meta device, which computes shapes and no numbers: what is read gets a gradient."""
    with _Drawn() as drawn, torch.no_grad():
        stages = functional_call(network.encoder, on_meta(network.encoder), (example_image(channels),))
    stages = [stage.detach().requires_grad_() for stage in stages]
    rest = nn.Sequential(network.decoder, network.head)
    functional_call(rest, on_meta(rest), (stages,)).sum().backward()
    read = tuple(number for number, stage in enumerate(stages) if stage.grad is not None)
    return Reading(read, len(stages), drawn.random)


def some(batch: Batch, rows: list[int]) -> Batch:
    """The images of some rows of a batch that lies on the CPU, without the maps that an encoder does not read."""
    if rows != list(range(len(batch))):
        images = {name: image[rows] for name, image in batch.images.items()}
        ids = [batch.ids[row] for row in rows]
        batch = replace(batch, images=images, labels=batch.labels[rows], ids=ids, epochs=batch.epochs[rows],
                        keys=batch.keys[rows])  # fmt: skip
    return replace(batch, clean=None, valid=None, seasons=None)


class _Drawn(TorchDispatchMode):
    """Whether an operator inside drew random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.random = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.random = self.random or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _mixes_the_batch(encoder: nn.Module) -> bool:
    """Whether an image's features depend on the other images of its batch, or the BatchNorm statistics on the step."""
    norms = [layer for layer in encoder.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    return any(norm.training or norm.running_mean is None for norm in norms)


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """(B, C, h, w) of B times (C, h, w), in their memory order, which torch.stack alone would not keep."""
    row = rows[0]
    whole = row.new_empty_strided((len(rows), *row.shape), (row.numel(), *row.stride()))
    return torch.stack(list(rows), out=whole)
