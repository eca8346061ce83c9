"""The frozen probe: a linear head on a frozen encoder, a fixed number of steps, scored on a fold of the downstream
TRAINING set. Early stopping may look at it; the test set stays untouched."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from cromss.config import ProbeConfig
from cromss.data.patch import Batch
from cromss.landcover import IGNORE
from cromss.training.metrics import Confusion, scores
from cromss.training.state import Inputs


def probe(
    encoder: nn.Module,
    modality: str,
    fitting: Sequence[Batch],
    scoring: Sequence[Batch],
    inputs: Inputs,
    config: ProbeConfig,
    *,
    classes: int,
    device: torch.device,
    seed: int = 0,
) -> float:
    """mIoU on `scoring` of a linear head trained on `fitting` over all the encoder's stages.

    The encoder is left as it was found: parameters, BatchNorm statistics and train/eval mode. Deterministic in `seed`.
    """
    was_training = encoder.training
    encoder.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(seed)
        head = _fit(encoder, modality, fitting, inputs, config, classes, device)
    confusion = Confusion(classes, device)
    with torch.no_grad():
        for batch in scoring:
            batch = batch.to(device)
            logits = head(_features(encoder, modality, batch, inputs))
            confusion.update(_upsampled(logits, batch.labels), batch.labels)
    encoder.train(was_training)
    return scores(confusion.counts).miou


def _fit(
    encoder: nn.Module, modality: str, fitting: Sequence[Batch], inputs: Inputs, config: ProbeConfig, classes: int,
    device: torch.device,
) -> nn.Module:  # fmt: skip
    batches = [batch.to(device) for batch in fitting]
    # A small set is encoded once; a large one again in every step, since the features outweigh the pixels.
    cached = [_features(encoder, modality, batch, inputs) for batch in batches] if len(batches) <= 8 else None
    head: nn.Module | None = None
    for step in range(config.steps):
        number = step % len(batches)
        labels = batches[number].labels.long()
        features = cached[number] if cached else _features(encoder, modality, batches[number], inputs)
        if head is None:  # BatchNorm without affine: features of all stages on one scale
            channels = features.shape[1]
            head = nn.Sequential(nn.BatchNorm2d(channels, affine=False), nn.Conv2d(channels, classes, 1)).to(device)
            optimizer = torch.optim.Adam(head.parameters(), config.lr)
        if not (labels != IGNORE).any():
            continue
        loss = F.cross_entropy(_upsampled(head(features), labels), labels, ignore_index=IGNORE)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return head.eval()


@torch.no_grad()
def _features(encoder: nn.Module, modality: str, batch: Batch, inputs: Inputs) -> torch.Tensor:
    """All stages from stride 4 on, brought to stride 4: (B, sum of channels, H/4, W/4)."""
    pixels = inputs(batch)[modality]
    stages = [stage for stage in encoder(pixels)[1:] if stage.shape[-1] <= pixels.shape[-1] // 4]
    return torch.cat([F.interpolate(stage.float(), size=stages[0].shape[-2:], mode="nearest") for stage in stages], 1)


def _upsampled(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
