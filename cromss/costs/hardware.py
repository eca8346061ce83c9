"""What the hardware can do: data-sheet peaks of the GPUs that this work is done on, and what a device here reaches."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil
import torch

from cromss.settings import suggest


@dataclass(frozen=True)
class Hardware:
    """Peaks of one device: as the maker states them (dense bfloat16, no sparsity), or as a run here reached them."""

    name: str
    title: str
    flops: float  # operations a second, two a multiply-add; bfloat16, but float32 of a CPU
    bandwidth: float  # bytes a second, device memory
    memory: float  # bytes
    measured: bool = False  # True: by a run on this machine, not from a data sheet

    @property
    def family(self) -> str:
        """A100 for both sizes of it."""
        return self.name.partition("-")[0].upper()

    @property
    def ridge(self) -> float:
        """Operations a byte from which on the arithmetic, not the memory, is the limit."""
        return self.flops / self.bandwidth

    def better(self, other: "Hardware") -> "Hardware":
        """The higher peaks of two measurements of the same device."""
        return replace(self, flops=max(self.flops, other.flops), bandwidth=max(self.bandwidth, other.bandwidth))


GPUS = {
    gpu.name: gpu
    for gpu in (
        Hardware("a100-40", "NVIDIA A100 40 GB (SXM)", 312e12, 1.555e12, 40e9),
        Hardware("a100-80", "NVIDIA A100 80 GB (SXM)", 312e12, 2.039e12, 80e9),
        Hardware("h100", "NVIDIA H100 80 GB (SXM)", 989e12, 3.35e12, 80e9),
        Hardware("h200", "NVIDIA H200 141 GB (SXM)", 989e12, 4.8e12, 141e9),
    )
}


def gpu(name: str) -> Hardware:
    """The data sheet of a GPU. Raises ValueError for an unknown name, listing the known ones."""
    if name not in GPUS:
        raise ValueError(f"--gpu {name}: unknown{suggest(name, [*GPUS, 'auto'])}")
    return GPUS[name]


def here() -> Hardware | None:
    """The data sheet of this machine's GPU; None without a GPU, or for one that the table does not hold."""
    if not torch.cuda.is_available():
        return None
    title, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    if "A100" in title:
        return GPUS["a100-80" if memory > 60e9 else "a100-40"]
    return next((GPUS[name] for name in ("h200", "h100") if name.upper() in title.upper()), None)


def measured(device: torch.device | None = None, seconds: float = 0.4) -> Hardware:
    """What this machine reaches with the threads that torch has now: a large matrix product, a large copy (default: CPU).

    The best of about `seconds` of each: a peak is not a mean. The product is in float32 on a CPU, in bfloat16 on a GPU
    that has it.
    """
    device = device or torch.device("cpu")
    on_gpu = device.type == "cuda"
    side, megabytes = (8192, 1024) if on_gpu else (1536, 192)  # far more than the caches hold
    precision = torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=precision) for _ in range(2))
    product = torch.empty_like(left)
    flops = 2 * side**3 / _fastest(lambda: torch.mm(left, right, out=product), device, seconds)
    source = torch.ones(megabytes * 2**20, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _fastest(lambda: target.copy_(source), device, seconds)  # read and written
    if on_gpu:
        memory = torch.cuda.get_device_properties(device).total_memory
        return Hardware("gpu", torch.cuda.get_device_name(device), flops, bandwidth, memory, measured=True)
    title = f"this CPU, {torch.get_num_threads()} threads"
    return Hardware("cpu", title, flops, bandwidth, psutil.virtual_memory().total, measured=True)


def _fastest(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest call, over at least three after one to warm up."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work()
    wait()
    best, calls, began = float("inf"), 0, time.perf_counter()
    while calls < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        work()
        wait()
        best, calls = min(best, time.perf_counter() - start), calls + 1
    return best


def gpu_memory(resources: dict[str, float]) -> float | None:
    """Bytes of the smallest GPU of a cluster, from the types in its Ray resources; None without a type that we know."""
    types = {key.partition(":")[2] for key in resources if key.startswith("accelerator_type:")}
    known = [gpu.memory for gpu in GPUS.values() if any(kind.startswith(gpu.family) for kind in types)]
    return min(known, default=None)
