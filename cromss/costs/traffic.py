"""Count what eager torch computes and moves: every operator reads its inputs from memory and writes its outputs there.

Works on real tensors and, computing nothing, on the meta device. A fused kernel moves less: torch.compile's own count says
how much (`compiled_bytes`).
"""

import logging
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class Traffic(TorchDispatchMode):
    """What the operators inside read and write; views are free.

    bytes       of every operator's inputs and outputs; what is broadcast is read once
    operators   how many there were: on a GPU, kernels
    elements    of every operator's largest tensor, summed: the arithmetic of code without matrix products
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.operators = 0
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not _is_free(func):
            read = (args, kwargs) if (first := _first_read(func)) == 0 else (args[first:],)
            tensors = [leaf for leaf in tree_leaves((read, result)) if isinstance(leaf, torch.Tensor)]
            self.operators += 1
            self.bytes += sum(_size(tensor) for tensor in tensors)
            self.elements += max((tensor.numel() for tensor in tensors), default=0)
        return result


def counted(work: Callable[[], Any]) -> tuple[float, int, int]:
    """(FLOP of convolutions and matrix products, bytes, operators) of calling `work`, in eager torch."""
    with FlopCounterMode(display=False) as flops, Traffic() as traffic:
        work()
    return flops.get_total_flops(), traffic.bytes, traffic.operators


def compiled_bytes(work: Callable[[], Any]) -> int:
    """Bytes that the kernels of torch.compile read and write, as its scheduler counts them, while `work` compiles.

    `work` must compile anew: caches are switched off inside, and earlier compilations forgotten. What is compiled stays
    in use afterwards. 0: nothing compiled.
    """
    from torch._inductor import compile_fx, config, metrics

    log = compile_fx.inductor_metrics_log  # the scheduler counts only where this is listened to
    level, propagate = log.level, log.propagate
    torch._dynamo.reset()
    metrics.reset()
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        with config.patch(force_disable_caches=True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*force disabled by")  # dynamo reports that it does as it was told
            work()
    finally:
        log.setLevel(level)
        log.propagate = propagate
    return metrics.num_bytes_accessed


def _is_free(func: Any) -> bool:
    """Whether an operator only relabels memory, or sets it aside."""
    name, returns = func.overloadpacket.__name__, func._schema.returns
    if name == "_unsafe_view" or name.startswith(("empty", "new_empty")):
        return True
    return bool(returns) and all(out.alias_info is not None and not out.alias_info.is_write for out in returns)


def _first_read(func: Any) -> int:
    """The first argument that is read: what is overwritten is not, and of a pattern (`zeros_like`) only the shape is."""
    name = func.overloadpacket.__name__
    return int(name in ("copy_", "fill_", "zero_") or name.endswith("_like") or name.startswith("new_"))


def _size(tensor: torch.Tensor) -> int:
    """Bytes of memory that a tensor shows: a broadcast dimension repeats what is there."""
    return math.prod(n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride) * tensor.itemsize
