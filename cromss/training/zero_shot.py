"""Zero-shot: the pretrained network's own classes on the downstream test set, through a class map. Nothing is trained."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cromss.config import TransferConfig
from cromss.contract import drift
from cromss.data.store import PatchStore
from cromss.landcover import ClassMap, class_map, scheme
from cromss.networks.fusion import FusionNetwork
from cromss.training import segmenter_file
from cromss.training.downstream import done, fed, keep, result_of, score


class Mapped(nn.Module):
    """One modality of a pretrained network, read in another scheme: image (B, C, H, W) -> log-probabilities (B, K, H, W).

    The probabilities of all classes that mean one target class are added up. Classes without a counterpart are no answer
    that could be given; target classes that nothing means have probability 0.
    """

    def __init__(self, network: FusionNetwork, modality: str, classes: ClassMap) -> None:
        super().__init__()
        self.network, self.modality, self.classes = network, modality, classes

    def forward(self, image: Tensor) -> Tensor:
        own = self.network.logits(self.modality, image).float().log_softmax(1)
        nothing = own.new_full(own[:, 0].shape, -torch.inf)
        return torch.stack(
            [own[:, list(parts)].logsumexp(1) if parts else nothing for parts in self.classes.sources], dim=1
        )


def check(segmenter: Path, store: PatchStore, modality: str) -> None:
    """Hold a pretrained network against the store. Raises ValueError, listing both sides."""
    card = segmenter_file.load_card(segmenter)
    class_map(scheme(card.scheme), store.scheme)
    fed(store, modality, card.bands[modality], card.scaling, card.contracts.get(modality), str(segmenter))


def zero_shot(
    config: TransferConfig, store: PatchStore, out: Path, *, modality: str, segmenter: Path,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Score the test split (two-fold: either split), once; the result as `downstream.judge` gives it.

    It says beside: `own_scheme`, `missing` = target classes that nothing means, which score 0 where the reference has
    them, and `unused` = own classes without a counterpart. There is nothing to repeat: it is always repeat 0.
    """
    if finished := done(out):
        return finished
    began, device = time.monotonic(), torch.device(device)
    network, card = segmenter_file.load(segmenter)
    contract = card.contracts.get(modality)
    inputs, ours = fed(store, modality, card.bands[modality], card.scaling, contract, str(segmenter))
    classes = class_map(scheme(card.scheme), store.scheme)
    mapped = Mapped(network, modality, classes).to(device)
    splits = ("test",) if config.protocol.kind == "holdout" else ("test", "train")
    found = [score(mapped, config, store, inputs, modality, split, device) for split in splits]
    result = result_of(sum(counts for counts, _ in found), store, config, modality, "zero_shot", 0) | {
        "head": None,
        "head_depth": None,
        "own_scheme": card.scheme,
        "missing": list(classes.missing),
        "unused": list(classes.unused),
        "seconds": time.monotonic() - began,
        "drift": drift(ours, contract) if contract is not None else [],
    }
    keep(out, result, config, store, [shown for _, shown in found])
    return result
