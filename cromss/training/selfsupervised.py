"""The step and the validation of a self-supervised pretraining: the same data, augmentation and budget, no labels."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from cromss.config import RunConfig
from cromss.data.augment import augment, centre_crop, uniform
from cromss.data.patch import Batch
from cromss.networks.selfsupervised import pooled
from cromss.training.loop import sum_over_ranks
from cromss.training.state import Inputs, Training, autocast
from cromss.training.step import Finite, Outcome

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # what `uniform` moves on by from one draw to the next


class SelfSupervisedStep:
    """One optimizer step of a run of `steps`. The whole batch at a time: contrast, centre and BatchNorm need its company."""

    def __init__(
        self, training: Training, config: RunConfig, inputs: Inputs, classes: int, device: torch.device,
        micro_batch: int | None = None, *, steps: int,
    ) -> None:  # fmt: skip
        self.training, self.config, self.inputs, self.device, self.steps = training, config, inputs, device, steps
        self.finite = Finite(training.optimizer, device)

    def __call__(self, batch: Batch, epoch: int) -> Outcome:
        """Train on `batch`, which lies on the device. Raises FloatingPointError for an EARLIER step's loss (see `Finite`)."""
        training = self.training
        batch = augment(batch, self.config.data.augment)
        seen = views(batch, self.config, self.inputs)
        training.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.config.optim.precision):
            losses = training.network(seen)
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        self.finite.admit(loss, training.step, batch.ids)
        training.module.before_step(epoch)
        training.optimizer.step()
        training.module.after_step(training.step, self.steps)
        training.step += 1
        parts = {"loss": loss.detach()} | {f"{name}/loss": each.detach() for name, each in losses.items()}
        return Outcome(batch, {}, parts, alpha=1.0, gamma=0.0)


def views(batch: Batch, config: RunConfig, inputs: Inputs) -> dict[str, tuple[Tensor, ...]]:
    """modality -> what its branch is shown of the batch. Drawn from the patches' keys alone."""
    draw = partial(draws, batch.keys.to(batch.labels.device))
    layout = torch.channels_last if config.scaling.channels_last else torch.contiguous_format

    def laid_out(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor

    return {
        name: tuple(map(laid_out, config.pretraining.views(image, batch.valid, draw)))
        for name, image in inputs(batch).items()
    }


def draws(keys: Tensor, number: int, count: int) -> Tensor:
    """(B, count): the draws `number`, `number` + 1, ... of each key."""
    return uniform(keys[:, None] + torch.arange(count, device=keys.device) * _GOLDEN, number)


@torch.no_grad()
def evaluate(
    module: nn.Module, batches: Iterable[Batch], config: RunConfig, inputs: Inputs, *, device: torch.device
) -> dict[str, float]:
    """Validation on every patch once, with views that are the same every time; sums over the ranks.

    `val/loss`, `val/<modality>/loss`, and `val/<modality>/spread`: the standard deviation of the encoder's features over the
    patches, each scaled to length 1, times the root of their dimension. 1: they fill their sphere; 0: the encoder says the same
    of every patch, it has collapsed (Chen and He 2021, arXiv 2011.10566, section 4.1).
    """
    module.eval()
    names = list(inputs.bands)
    losses = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
    moments: dict[str, Tensor] = {}
    for batch in batches:
        batch = centre_crop(batch.to(device), config.data.augment.crop)
        seen, images = views(batch, config, inputs), inputs(batch)
        with autocast(device, config.optim.precision):
            found = module(seen)
            features = {name: pooled(module.encoder(name), images[name]) for name in names}
        losses += len(batch) * torch.stack([*(found[name].double() for name in names), losses.new_ones(())])
        for name in names:
            unit = nn.functional.normalize(features[name].double(), dim=1)
            sums = torch.stack([unit.sum(0), unit.square().sum(0)])
            moments[name] = moments[name] + sums if name in moments else sums
    *sums, count = sum_over_ranks(losses).tolist()
    metrics = {f"val/{name}/loss": total / count for name, total in zip(names, sums, strict=True)} if count else {}
    metrics["val/loss"] = sum(sums) / count if count else float("nan")
    for name in names if count > 1 else ():
        width = module.encoder(name).out_channels[-1]
        mean, square = sum_over_ranks(moments.get(name, losses.new_zeros(2, width))) / count
        metrics[f"val/{name}/spread"] = float((square - mean**2).clamp(min=0).sqrt().mean()) * width**0.5
    return metrics
