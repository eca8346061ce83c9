"""Who is counted together: the pixels of one image, of this worker's batch, or of all workers' batches."""

from typing import Any, Literal

import torch.distributed as dist
from jaxtyping import Num
from torch import Tensor
from torch.autograd import Function

Scope = Literal["image", "batch", "global"]


def spans_workers(scope: Scope) -> bool:
    """True where `scope` reaches beyond this worker. `global` without a process group is `batch`."""
    return scope == "global" and dist.is_available() and dist.is_initialized()


def pooled(sums: Num[Tensor, "*shape"], scope: Scope) -> Num[Tensor, "*shape"]:
    """Sums over this worker's pixels -> sums over the pixels of the scope.

    With scope `global` this is a collective: every worker must make the same calls in the same order.
    """
    return _SumOverWorkers.apply(sums) if spans_workers(scope) else sums


class _SumOverWorkers(Function):
    """All-reduce whose gradient suits DistributedDataParallel.

    Every worker derives the same loss from the same sums, so dL/dsum is alike everywhere and needs no exchange; DDP
    then takes the mean over workers where the whole batch's gradient is the sum, hence the factor.
    """

    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        total = sums.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * dist.get_world_size()
