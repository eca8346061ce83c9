"""One point of the scaling law: a training step of one setting, on random pixels, timed again and again."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cromss.benchmarks.meters import Clock
from cromss.benchmarks.sides import random_batch
from cromss.config import RunConfig, resolve
from cromss.sensors import SENSORS, SENTINEL2, sensor
from cromss.training.pretraining import build, start
from cromss.training.state import Inputs
from cromss.training.step import Step
from cromss.training.uploads import uploaded

MARGIN = 8  # pixels by which a patch exceeds its crop: the paper cuts 256 out of 264
WARM_UP = 2  # steps before the clock runs: kernels are chosen, Adam's state is made


@dataclass(frozen=True)
class Setting:
    """What a step depends on. `pairs`: patches of all workers together, each in every modality."""

    encoder: str
    pairs: int
    size: int  # pixels of a side
    classes: int
    modalities: tuple[str, ...]
    late: bool = False  # a U-Net per modality instead of one decoder for all

    @property
    def fusion(self) -> str:
        """single | middle | late"""
        return "single" if len(self.modalities) == 1 else "late" if self.late else "middle"

    def config(self) -> RunConfig:
        """The run whose step this is: the paper's but for the setting. Raises ValueError for an unknown encoder."""
        which = {"modality": self.modalities[0]} if self.fusion == "single" else {"modalities": list(self.modalities)}
        return resolve(
            {
                "model": {"encoder": self.encoder, "fusion": {"kind": self.fusion, **which}},
                "data": {"augment": {"crop": self.size}},
            }
        )


class Sample(NamedTuple):
    """Seconds of one step, and of the objective alone on that step's logits: forward, and backward as far as they."""

    step: float
    objective: float


class Point:
    """A network in training at one setting. Calling it does one step, the step of `training.loop.fit`.

    `memory_bytes`: the most that network, optimizer and first steps held at once (see `held`).
    """

    def __init__(self, setting: Setting, device: torch.device, world: int = 1) -> None:
        """Build and warm up, as one of `world` workers. Raises ValueError as the network does."""
        self.config, self.device = setting.config(), device
        bands = {name: sensor(name).bands for name in setting.modalities}
        self.inputs = Inputs(bands, "uint8", self.config.model.scaling)
        self.batch = random_batch(bands, setting.classes, setting.pairs // world, setting.size + MARGIN)
        self._batches = uploaded(repeat(self.batch), device, self.config.scaling.double_buffer)
        network = build(self.config, self.inputs, setting.classes)
        with held(device, network) as memory:
            self.training = start(self.config, network.to(device), world)
            self.training.network.train()
            # As tensors, as in training: a compiled objective would be compiled again for every number.
            shares = (self.config.objective.alpha.end, self.config.objective.gamma.end)
            self._alpha, self._gamma = (torch.tensor(end, dtype=torch.float64, device=device) for end in shares)
            self._step = Step(self.training, self.config, self.inputs, setting.classes, device)
            for _ in range(WARM_UP):
                self()
        self.memory_bytes = memory.peak

    def __call__(self) -> Sample:
        """One step, at the end of the ramps."""
        clock = Clock(self.device)
        with clock.part("step"):
            outcome = self._step(next(self._batches), self.config.optim.epochs)
        leaves = {name: z.requires_grad_() for name, z in outcome.logits.items()}
        batch = outcome.batch
        with clock.part("objective"):
            parts = self._step.objective(leaves, batch.labels, alpha=self._alpha, gamma=self._gamma, valid=batch.valid)
            parts.loss.backward()
        return Sample(clock.seconds["step"], clock.seconds["objective"])


class LiveMemory(TorchDispatchMode):
    """`peak`: the most bytes of tensors that lived at once: those of `network`, and those made or touched inside.

    Counted, not sampled: the same whatever else the process holds and however busy the machine is. The scratch memory of
    libraries, which no tensor owns, is not in it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: dict[int, weakref.ref] = {}
        for tensor in (*network.parameters(), *network.buffers()):
            self._add(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        self.peak = max(self.peak, self.bytes)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self.bytes += size

        def gone(_: weakref.ref) -> None:
            del self._known[key]
            self.bytes -= size

        self._known[key] = weakref.ref(storage, gone)


class GpuMemory:
    """`peak`, at the end: the most bytes that torch's allocator gave away at once, beyond those it had given before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "GpuMemory":
        torch.cuda.reset_peak_memory_stats(self.device)
        self._before = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(self, *error: object) -> None:
        self.peak = torch.cuda.max_memory_allocated(self.device) - self._before


def held(device: torch.device, network: nn.Module) -> LiveMemory | GpuMemory:
    """A context that knows, in the end, the `peak` of the memory that `network`, still on the CPU, and its block took."""
    return GpuMemory(device) if device.type == "cuda" else LiveMemory(network)


MEMORY_MEANS = {
    "cpu": "tensors alive at once, counted; without the scratch memory of libraries",
    "cuda": "torch.cuda.max_memory_allocated",
}


@contextmanager
def modalities(count: int) -> Iterator[tuple[str, ...]]:
    """Names of so many modalities: Sentinel-2 alone, both sensors, and from the third on stand-ins that have Sentinel-2's
    bands and that `sensors` knows as long as the block lasts."""
    known = ("s2",) if count == 1 else ("s1", "s2")
    stand_ins = tuple(f"stand-in-{number}" for number in range(len(known) + 1, count + 1))
    SENSORS.update({name: replace(SENTINEL2, name=name, title=f"stand-in {name}") for name in stand_ins})
    try:
        yield (*known, *stand_ins)
    finally:
        for name in stand_ins:
            del SENSORS[name]
