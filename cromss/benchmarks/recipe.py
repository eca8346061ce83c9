"""The authors' recipe, stated plainly in eager torch: what `bench step` runs beside ours, and the oracle of our objective.

Written from the description of their public code, operator by operator as one would write it first: a boolean mask and a
top-k for every class and modality, one-hot labels, a softmax wherever one is needed. Networks are laid out as torch lays
them out, Adam is torch's default. Every label must be a class number: their code has no ignored pixels.
"""

import math
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cromss.config import RunConfig
from cromss.training.loop import make_scheduler
from cromss.training.state import Training


def recipe_loss(
    logits: dict[str, Tensor], labels: Tensor, alpha: float, gamma: float, confidence: str = "entropy"
) -> Tensor:
    """The loss of one or two modalities, a float32 scalar.

    logits      modality -> (B, C, H, W); both modalities of a pair
    labels      (B, H, W) class numbers 0 ... C-1
    confidence  entropy | gini: of a prediction, for the consistency weights
    """
    logits = {modality: z.float() for modality, z in logits.items()}
    labels = labels.long()
    probabilities = {modality: F.softmax(z, dim=1) for modality, z in logits.items()}
    with torch.no_grad():
        label = _enhance({m: q.gather(1, labels.unsqueeze(1)).squeeze(1) for m, q in probabilities.items()})
        prediction = _enhance({m: _prediction_confidence(q, confidence) for m, q in probabilities.items()})
        label_weights = {m: _label_weights(f, labels, alpha, probabilities[m].shape[1]) for m, f in label.items()}
        entropy_weights = {m: (1 - gamma) + gamma * f for m, f in prediction.items()}
    loss = torch.zeros((), device=labels.device)
    for modality, z in logits.items():
        cross_entropy = F.cross_entropy(z, labels, reduction="none")
        loss = loss + (cross_entropy * label_weights[modality]).sum() / label_weights[modality].sum()
        loss = loss + _dice(z, labels, label_weights[modality])
    for student, teacher in permutations(logits, 2):
        target = F.softmax(logits[teacher].detach(), dim=1)
        soft = -(target * F.log_softmax(logits[student], dim=1)).sum(1)
        loss = loss + (soft * entropy_weights[teacher]).sum() / entropy_weights[teacher].sum()
    return loss


def start_recipe(config: RunConfig, network: nn.Module) -> Training:
    """The network in torch's own layout with torch's own Adam: no switch of the configuration applies."""
    network = network.to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam(network.parameters(), config.optim.lr, weight_decay=config.optim.weight_decay)
    return Training(network, optimizer, make_scheduler(optimizer, config.optim.schedule))


def _enhance(confidences: dict[str, Tensor]) -> dict[str, Tensor]:
    """Eq. 2; a modality alone has nobody to agree with."""
    if len(confidences) == 1:
        return confidences
    (one, own), (two, other) = confidences.items()
    return {one: own * (1 + other) / 2, two: other * (1 + own) / 2}


def _prediction_confidence(probabilities: Tensor, kind: str) -> Tensor:
    if kind == "gini":
        return (probabilities**2).sum(1)
    return 1 + (probabilities * torch.log(probabilities + 1e-10)).sum(1) / math.log(probabilities.shape[1])  # eq. 1


def _label_weights(confidence: Tensor, labels: Tensor, alpha: float, classes: int) -> Tensor:
    """Eq. 3 with a threshold for every class."""
    if alpha == 0:
        return confidence
    weights = torch.zeros_like(confidence)
    for number in range(classes):
        mask = labels == number
        values = confidence[mask]
        k = int(np.float32(len(values)) * np.float32(alpha))
        if k == 0:
            continue
        threshold = torch.topk(values, k).values[-1]
        weights[mask] = torch.clamp(values / threshold, max=1) if threshold > 0 else torch.ones_like(values)
    return weights


def _dice(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    probabilities = F.log_softmax(logits, dim=1).exp()
    onehot = F.one_hot(labels, logits.shape[1]).permute(0, 3, 1, 2).float()
    weights = weights.unsqueeze(1)
    overlap = (probabilities * onehot * weights).sum((0, 2, 3))
    size = ((probabilities + onehot) * weights).sum((0, 2, 3))
    present = onehot.sum((0, 2, 3)) > 0
    return ((1 - 2 * overlap / size.clamp(min=1e-7)) * present).mean()
