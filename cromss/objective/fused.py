"""The objective for compilers: the same mathematics as crossmodal.py, its gradient written down, nothing kept per class.

Read crossmodal.py to know what is computed; it is the oracle of every test here. What differs is the traffic. Eager torch
writes a (B, C, H, W) tensor to memory for every operator; here the class dimension is unrolled, so that torch.compile makes
of each stage one loop over the pixels with the classes in registers:

    pixels      logits -> ln sum exp, confidences (eq. 1 and 2), teachers' weights, discrepancies: maps (B, H, W)
    weigh       maps -> label weights (eq. 3)
    count       maps, weights -> the sums of the losses; reads the logits a second time, for Dice
    gradients   logits, maps, sums -> dL/dlogits: reads the logits a third time and writes once

Between forward and backward only maps stay in memory.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import permutations
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool
from torch import Tensor

from cromss.objective.confidence import IGNORE, Labels, full_precision
from cromss.objective.crossmodal import ObjectiveConfig, ObjectiveParts
from cromss.objective.hooks import Cut, Evidence
from cromss.objective.losses import DICE_EPSILON, PIXELS, Targets, one_hot
from cromss.objective.pool import pooled, spans_workers
from cromss.objective.weights import Share

# The gradient has many operators for every class. Inductor's own limits would cut its one loop over the pixels into several,
# with maps written to memory between them.
WIDE = {"max_fusion_size": 1024, "realize_opcount_threshold": 100_000, "realize_acc_reads_threshold": 1000}


class Maps(NamedTuple):
    """What a pixel says: maps (B, H, W) by modality, or by (student, teacher)."""

    log_sum: dict[str, Tensor]  # ln sum_c exp z_c
    surprise: dict[str, Tensor]  # cross-entropy with the given label
    given: dict[str, Tensor]  # p_y, the probability of the given label
    label: dict[str, Tensor]  # F'_l
    trust: dict[str, Tensor]  # W_e
    discord: dict[tuple[str, str], Tensor]  # W_e D


class Sums(NamedTuple):
    """What the losses divide by what, over the scope; dicts as in `Maps`, Dice per class."""

    cross_entropy: dict[str, tuple[Tensor, Tensor]]  # numerator, denominator
    dice: dict[str, tuple[Tensor, Tensor, Tensor]]  # overlap, size, presence: (C,)
    consistency: dict[tuple[str, str], tuple[Tensor, Tensor]]


class FusedObjective:
    """`CrossModalObjective` with the same call, values and gradient; only `loss` is differentiable.

    `compiled`: run the stages through torch.compile; without, they are merely another way to write the sums. Raises
    ValueError for a method whose losses are not the paper's: its gradient is not written down here.
    """

    def __init__(self, config: ObjectiveConfig, *, compiled: bool = True):
        if not config.method.closed_form:
            raise ValueError(
                f"objective.method.kind={config.method.kind}: has no closed form; take CrossModalObjective"
            )
        self.config = config
        build = partial(torch.compile, dynamic=False) if compiled else lambda stage, **how: stage
        # Apart, because what leaves a compiled function is written once, and never computed again by whoever reads it.
        self._pixels, self._weigh, self._count = build(self._pixels), build(self._weigh), build(self._count)
        self._gradients = build(self._gradients, options=WIDE)

    def __call__(
        self,
        logits: dict[str, Tensor],
        labels: Labels,
        *,
        alpha: Share,
        gamma: Share,
        targets: Targets | None = None,
        valid: Bool[Tensor, "batch height width"] | None = None,
        clean: Labels | None = None,
    ) -> ObjectiveParts:
        """As `CrossModalObjective`. alpha and gamma as 0-dimensional float64 tensors spare a compilation per epoch."""
        with torch.autocast(labels.device.type, enabled=False):
            shares = [torch.as_tensor(x, dtype=torch.float64, device=labels.device) for x in (alpha, gamma)]
            names = tuple(logits)
            loss, *values = _Loss.apply(self, names, labels, *shares, targets, valid, clean, *logits.values())
        segmentation, agreement, *each = values
        count = len(names)
        columns = [dict(zip(names, each[i : i + count], strict=True)) for i in range(0, 5 * count, count)]
        return ObjectiveParts(loss, segmentation, columns[0], columns[1], agreement, *columns[2:])

    # --- forward ------------------------------------------------------------------------------------------------------

    def _losses(
        self, logits: dict[str, Tensor], labels: Tensor, alpha: Tensor, gamma: Tensor, targets: Tensor | None,
        valid: Tensor | None, clean: Tensor | None,
    ) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], Sums]:  # fmt: skip
        """([loss, parts ...], log_sum, label weights, entropy weights, sums)."""
        maps = self._pixels(logits, labels, gamma, targets, valid)
        weights = self._weigh(maps.given, maps.label, labels, alpha, valid, clean, _classes(logits))
        local = self._count(logits, labels, targets, valid, maps, weights)
        sums = self._divided(pooled(local, self.config.scope), logits)
        cross_entropy = {name: _ratio(*pair) for name, pair in sums.cross_entropy.items()}
        dice = {name: _dice(*triple) for name, triple in sums.dice.items()}
        segmentation = sum(cross_entropy.values()) + sum(dice.values())
        agreement = segmentation.new_zeros(())
        if sums.consistency:
            lesson = self.config.consistency.lesson
            pairs = [lesson(teacher) * _ratio(*pair) for (_, teacher), pair in sums.consistency.items()]
            agreement = torch.stack(pairs).sum() / (len(logits) - 1)
        loss = segmentation + self.config.consistency.weight * agreement
        parts = [loss, segmentation, agreement, *cross_entropy.values(), *dice.values(), *maps.label.values(),
                 *weights.values(), *maps.trust.values()]  # fmt: skip
        return parts, maps.log_sum, weights, maps.trust, sums

    def _pixels(
        self, logits: dict[str, Tensor], labels: Tensor, gamma: Tensor, targets: Tensor | None, valid: Tensor | None
    ) -> Maps:
        labels = _known(labels, valid)
        z = {name: _planes(logit, valid) for name, logit in logits.items()}
        wanted = _wanted(labels, targets, next(iter(z.values())))
        high = {name: _reduced(torch.maximum, planes) for name, planes in z.items()}
        log_sum = {
            name: high[name] + _total([(x - high[name]).exp() for x in planes]).log() for name, planes in z.items()
        }
        mass = 1.0 if targets is None else _total(wanted)
        surprise = {
            name: mass * log_sum[name] - _total([t * x for t, x in zip(wanted, planes, strict=True)])
            for name, planes in z.items()
        }
        q = {name: [(x - log_sum[name]).exp() for x in planes] for name, planes in z.items()}
        at = [labels == c for c in range(len(wanted))]
        given = {
            name: _total([torch.where(here, p, 0.0) for here, p in zip(at, planes, strict=True)])
            for name, planes in q.items()
        }
        negative_entropy = {
            name: _total([p * (x - log_sum[name]) for p, x in zip(q[name], planes, strict=True)])
            for name, planes in z.items()
        }
        if self.config.confidence == "entropy":
            width = math.log(len(wanted))
            prediction = {name: (1 + h / width).clamp(0, 1) for name, h in negative_entropy.items()}
        else:
            prediction = {name: _total([p * p for p in planes]).clamp(max=1) for name, planes in q.items()}
        label, prediction = self.config.enhancement(given), self.config.enhancement(prediction)
        trust = {name: self.config.method.entropy_weights(f, gamma) for name, f in prediction.items()}
        if valid is not None:
            trust = {name: w * valid for name, w in trust.items()}
        discord = {}
        for student, teacher in permutations(z, 2):
            pairs = zip(q[teacher], q[student], z[student], strict=True)
            if self.config.consistency.kind == "mse":
                distance = _total([(p - own) * (p - own) for p, own, _ in pairs])
            else:
                distance = -_total([p * (x - log_sum[student]) for p, _, x in pairs])
                if self.config.consistency.kind == "kl":
                    distance = distance + negative_entropy[teacher]
            discord[student, teacher] = trust[teacher] * distance
        return Maps(log_sum, surprise, given, label, trust, discord)

    def _weigh(
        self, own: dict[str, Tensor], label: dict[str, Tensor], labels: Tensor, alpha: Tensor, valid: Tensor | None,
        clean: Tensor | None, classes: int,
    ) -> dict[str, Tensor]:  # fmt: skip
        config, labels = self.config, _known(labels, valid)
        cut = Cut(alpha, config.scope, config.per_class, classes, config.threshold)
        return config.method.label_weights(Evidence(own, label, labels, clean), cut)

    def _count(
        self, logits: dict[str, Tensor], labels: Tensor, targets: Tensor | None, valid: Tensor | None, maps: Maps,
        weights: dict[str, Tensor],
    ) -> Tensor:  # fmt: skip
        """This worker's sums, one after the other, per class where that spares a loop over the pixels: with scope `global`
        they travel in one exchange."""
        at = one_hot(_known(labels, valid), _classes(logits)) if targets is None else targets
        each = [at.sum(PIXELS).to(torch.float32)]
        for name, logit in logits.items():
            w = weights[name].unsqueeze(1)
            q = (_masked(full_precision(logit), valid) - maps.log_sum[name].unsqueeze(1)).exp()
            if targets is None:  # then the overlap is read off a map: q, used once, never leaves the registers
                wanted, overlap = w * at, (w * maps.given[name].unsqueeze(1) * at).sum(PIXELS)
                each += [(w * maps.surprise[name].unsqueeze(1) * at).sum(PIXELS).sum(), wanted.sum(PIXELS).sum()]
            else:
                wanted, overlap = w * at, (w * q * at).sum(PIXELS)
                each += [(weights[name] * maps.surprise[name]).sum(), weights[name].sum()]
            each += [overlap, (w * q).sum(PIXELS) + wanted.sum(PIXELS)]
        for (_, teacher), discord in maps.discord.items():
            each += [discord.sum(), maps.trust[teacher].sum()]
        return torch.cat([part.view(-1).to(each[-1].dtype) for part in each])

    def _divided(self, sums: Tensor, logits: dict[str, Tensor]) -> Sums:
        """The sums by name again."""
        pairs, classes = list(permutations(logits, 2)), _classes(logits)
        each = iter(sums.split([classes, *[1, 1, classes, classes] * len(logits), *[1, 1] * len(pairs)]))
        presence, cross_entropy, dice = next(each), {}, {}
        for name in logits:
            cross_entropy[name] = (next(each)[0], next(each)[0])
            dice[name] = (next(each), next(each), presence)
        return Sums(cross_entropy, dice, {pair: (next(each)[0], next(each)[0]) for pair in pairs})

    # --- backward -----------------------------------------------------------------------------------------------------

    def _gradients(
        self, upstream: Tensor, logits: dict[str, Tensor], labels: Tensor, targets: Tensor | None, valid: Tensor | None,
        log_sum: dict[str, Tensor], weights: dict[str, Tensor], trust: dict[str, Tensor], sums: Sums,
    ) -> list[Tensor]:  # fmt: skip
        """dL/dz of every modality, in its dtype.

        With p = softmax(z), t the target, u = W / sum W: cross-entropy gives u (p - t). Dice gives W p (d - <p, d>) with
        d_c = dD/dp_c / W = 2 (I_c / S_c - t_c) / (C S_c). A student of teacher P gives v (p - P), v = W_e / sum W_e.
        """
        config = self.config
        labels = _known(labels, valid)
        q = {name: [_exp(x - log_sum[name]) for x in _planes(logit, valid)] for name, logit in logits.items()}
        wanted = _wanted(labels, targets, next(iter(q.values())))
        mass = 1.0 if targets is None else _total(wanted)
        # Every worker derives the whole loss from the same sums; DDP's mean over the workers is undone here (pool.py).
        upstream = upstream * (dist.get_world_size() if spans_workers(config.scope) else 1)
        share = config.consistency.weight / max(len(logits) - 1, 1)
        gradients = []
        for name, logit in logits.items():
            w, own = weights[name], q[name]
            u = w * _inverse(sums.cross_entropy[name][1])
            flat, slope = _dice_slopes(*sums.dice[name])
            pull = [flat[c] + slope[c] * t for c, t in enumerate(wanted)]
            mean = _total([p * d for p, d in zip(own, pull, strict=True)])
            gradient = [u * (mass * p - t) + w * p * (d - mean) for p, t, d in zip(own, wanted, pull, strict=True)]
            for teacher in (other for other in logits if other != name):
                lesson = share * config.consistency.lesson(teacher)
                v = trust[teacher] * (lesson * _inverse(sums.consistency[name, teacher][1]))
                gaps = [p - goal for p, goal in zip(own, q[teacher], strict=True)]
                if config.consistency.kind == "mse":
                    middle = _total([p * gap for p, gap in zip(own, gaps, strict=True)])
                    gaps = [2 * p * (gap - middle) for p, gap in zip(own, gaps, strict=True)]
                gradient = [g + v * gap for g, gap in zip(gradient, gaps, strict=True)]
            gradients.append(torch.stack([(upstream * g).to(logit.dtype) for g in gradient], 1))
        return gradients


class _Loss(torch.autograd.Function):
    """Autograd's view of the stages: logits in, loss out; everything else is detached."""

    @staticmethod
    def forward(
        ctx: Any, objective: FusedObjective, names: tuple[str, ...], labels: Tensor, alpha: Tensor, gamma: Tensor,
        targets: Tensor | None, valid: Tensor | None, clean: Tensor | None, *logits: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        by_name = dict(zip(names, logits, strict=True))
        parts, *rest, sums = objective._losses(by_name, labels, alpha, gamma, targets, valid, clean)
        ctx.objective, ctx.names, ctx.sums = objective, names, sums
        kept = [by_name, *rest]
        ctx.save_for_backward(labels, targets, valid, *[one[name] for one in kept for name in names])
        ctx.mark_non_differentiable(*parts[1:])
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        labels, targets, valid, *kept = ctx.saved_tensors
        count = len(ctx.names)
        logits, *rest = (dict(zip(ctx.names, kept[i : i + count], strict=True)) for i in range(0, 4 * count, count))
        return (None,) * 8 + tuple(ctx.objective._gradients(upstream, logits, labels, targets, valid, *rest, ctx.sums))


# --- per pixel --------------------------------------------------------------------------------------------------------


def _classes(logits: dict[str, Tensor]) -> int:
    return next(iter(logits.values())).shape[1]


def _known(labels: Tensor, valid: Tensor | None) -> Tensor:
    return labels if valid is None else labels.masked_fill(~valid, IGNORE)


def _planes(logits: Tensor, valid: Tensor | None) -> Sequence[Tensor]:
    """The classes one by one, each (B, H, W) in float32 or wider; 0 where there is no image data."""
    planes = full_precision(logits).unbind(1)
    return planes if valid is None else [torch.where(valid, x, 0.0) for x in planes]


def _masked(logits: Tensor, valid: Tensor | None) -> Tensor:
    return logits if valid is None else torch.where(valid.unsqueeze(1), logits, 0.0)


def _wanted(labels: Tensor, targets: Tensor | None, like: Sequence[Tensor]) -> Sequence[Tensor]:
    """The target of every class, (B, H, W) each, in the type of `like`."""
    return [(labels == c).to(like[0].dtype) for c in range(len(like))] if targets is None else targets.unbind(1)


def _exp(x: Tensor) -> Tensor:
    """e^x by a power of two: what comes of torch.exp, inductor writes to memory on a CPU where it is used twice."""
    return torch.exp2(x * math.log2(math.e))


def _reduced(operation: Callable[[Tensor, Tensor], Tensor], terms: Sequence[Tensor]) -> Tensor:
    result = terms[0]
    for term in terms[1:]:
        result = operation(result, term)
    return result


def _total(terms: Sequence[Tensor]) -> Tensor:
    return _reduced(torch.add, terms)


# --- per sum ----------------------------------------------------------------------------------------------------------


def _inverse(denominator: Tensor) -> Tensor:
    return 1 / torch.where(denominator > 0, denominator, 1)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return numerator * _inverse(denominator)


def _dice(overlap: Tensor, size: Tensor, presence: Tensor) -> Tensor:
    return ((1 - 2 * overlap / size.clamp(min=DICE_EPSILON)) * (presence > 0)).mean()


def _dice_slopes(overlap: Tensor, size: Tensor, presence: Tensor) -> tuple[Tensor, Tensor]:
    """dD/dp_c = W (flat_c + slope_c t_c), (C,) each; the mean over the classes included."""
    count = (presence > 0).to(size.dtype) / len(size)
    bounded = size.clamp(min=DICE_EPSILON)
    flat = torch.where(size >= DICE_EPSILON, 2 * overlap / bounded.square(), 0) * count
    return flat, -2 / bounded * count
