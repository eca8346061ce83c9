"""Thresholds: the k-th highest confidence of every group of pixels, which eq. 3 divides by.

No shape depends on the data and nothing waits for the device, so a step can be compiled and never stalls a GPU.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import pydantic
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cromss.objective.pool import Scope, pooled, spans_workers
from cromss.settings import Settings

# A float32 that is not negative orders like its bits, and 30 of them hold every value in [0, 1]: the exponent and 23 bits
# of mantissa. A round of counting settles this many, from the highest down.
ROUNDS = (12, 12, 6)

Groups = Int[Tensor, "#batch #height #width"]
RankOf = Callable[[Int[Tensor, " groups"]], Int[Tensor, " groups"]]
Found = tuple[Float[Tensor, " groups"], Int[Tensor, " groups"]]


class Histogram(Settings):
    """Two histograms of 4,096 bins settle 24 of the 30 bits: w' <= w < w' (1 + 2^-17), so the weights are at most
    0.0008 % too high and the share alpha, at least, counts fully. With scope `global` the workers exchange these
    histograms and nothing else."""

    kind: Literal["histogram"] = "histogram"

    def find(
        self, confidence: Tensor, known: Bool[Tensor, "batch height width"], group: Groups, groups: int, rank_of: RankOf,
        scope: Scope,
    ) -> Found:  # fmt: skip
        return _count(confidence, known, group, groups, rank_of, scope, ROUNDS[:2])


class Exact(Settings):
    """To the last bit, by sorting every pixel: the oracle that the histogram is held against. With scope `global`, where
    no worker sees every pixel, by a third histogram."""

    kind: Literal["exact"] = "exact"

    def find(
        self, confidence: Tensor, known: Bool[Tensor, "batch height width"], group: Groups, groups: int, rank_of: RankOf,
        scope: Scope,
    ) -> Found:  # fmt: skip
        if spans_workers(scope):
            return _count(confidence, known, group, groups, rank_of, scope, ROUNDS)
        return _sort(confidence, known, group, groups, rank_of)


Threshold = Annotated[Histogram | Exact, pydantic.Field(discriminator="kind")]


def _count(
    confidence: Tensor, known: Tensor, group: Tensor, groups: int, rank_of: RankOf, scope: Scope, rounds: tuple[int, ...]
) -> Found:  # fmt: skip
    """Most significant bits first: count the values of every digit, and go on among those that share the k-th's."""
    bits = confidence.float().contiguous().view(torch.int32)
    shift, settled = sum(ROUNDS), torch.zeros(groups, dtype=torch.int64, device=bits.device)
    rank = left = None
    for width in rounds:
        candidates = known if rank is None else known & (bits >> shift == settled[group])
        shift -= width
        digit = (bits >> shift) & ((1 << width) - 1)
        counts = pooled(_histogram(digit + (group << width), candidates, groups << width), scope).view(groups, -1)
        reaching = counts.flip(1).cumsum(1).flip(1)  # how many have this digit or a higher one
        if rank is None:
            rank = left = rank_of(reaching[:, 0])
        found = ((reaching >= left.unsqueeze(1)).sum(1) - 1).clamp(min=0)
        own = counts.gather(1, found.unsqueeze(1)).squeeze(1)
        left = left - (reaching.gather(1, found.unsqueeze(1)).squeeze(1) - own)
        settled = (settled << width) + found
    return _as_float(settled << shift), rank


def _histogram(index: Tensor, counted: Tensor, bins: int) -> Int[Tensor, " bins"]:
    """How many `counted` pixels fall into each bin. (torch.bincount would wait for the device to learn its own size.)"""
    index = torch.where(counted, index, bins).flatten()  # one bin more, for the others: no second map to read
    one = torch.ones((), dtype=torch.int32, device=index.device).expand(len(index))
    return torch.zeros(bins + 1, dtype=torch.int32, device=index.device).scatter_add_(0, index, one)[:bins]


def _sort(confidence: Tensor, known: Tensor, group: Tensor, groups: int, rank_of: RankOf) -> Found:
    """`group << 32 | bits` in one sorted list: every group a run, ascending; ignored pixels come first, as -1."""
    bits = confidence.float().contiguous().view(torch.int32).long()
    ordered = torch.where(known, bits + (group << 32), -1).flatten().sort().values
    bounds = torch.arange(groups + 1, device=bits.device) << 32
    start, end = torch.searchsorted(ordered, bounds).unfold(0, 2, 1).unbind(1)
    rank = rank_of(end - start)
    return _as_float(ordered[(end - rank).clamp(0, len(ordered) - 1)] & 0x7FFFFFFF), rank


def _as_float(bits: Int[Tensor, " groups"]) -> Float[Tensor, " groups"]:
    return bits.to(torch.int32).view(torch.float32)
