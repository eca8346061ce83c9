"""Instruments: seconds, peak memory, traffic of the parts of a step."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import psutil
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cromss.costs.traffic import Traffic

SAMPLING = 0.005  # seconds between two looks at the resident memory


class Clock:
    """Seconds of the parts of one step. On a GPU a part ends when its kernels have ended."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = self._now()
        yield
        self.seconds[name] = self._now() - began

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Tally:
    """In place of a clock: bytes that the operators of each part read and write, run eagerly one after the other."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        with Traffic() as traffic:
            yield
        self.bytes[name] = traffic.bytes


class Unmetered:
    """Nothing is asked of the parts: a step runs as it would unobserved."""

    def part(self, name: str) -> nullcontext[None]:
        return nullcontext()


class PeakMemory:
    """`bytes`: how far memory rose, at its highest, above where it was on entry."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0
        on_gpu = device.type == "cuda"
        sampled = f"resident memory, sampled every {1000 * SAMPLING:.0f} ms by a thread"
        self.means = "torch.cuda.max_memory_allocated" if on_gpu else sampled

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            return self
        self._process, self._done = psutil.Process(), threading.Event()
        self._before = self._process.memory_info().rss
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
            return
        self._done.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLING):
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._before)


def count_gflop(network: nn.Module, channels: dict[str, int], pairs: int, size: int) -> float:
    """GFLOP of forward and backward, counted on the meta device, to which `network` moves: nothing is computed."""
    network.to("meta")
    images = {name: torch.empty(pairs, count, size, size, device="meta") for name, count in channels.items()}
    with FlopCounterMode(display=False) as counter:
        logits = list(network(images).values())
        torch.autograd.backward(logits, [torch.empty_like(z) for z in logits])
    return counter.get_total_flops() / 1e9
