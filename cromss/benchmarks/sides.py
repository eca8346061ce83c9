"""The two sides of `bench step`, ours and the plain statement of the authors' recipe, and one step of either, in parts."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cromss.benchmarks.recipe import recipe_loss, start_recipe
from cromss.config import RunConfig
from cromss.data.augment import augment
from cromss.data.patch import Batch
from cromss.landcover import DYNAMIC_WORLD
from cromss.sensors import sensor
from cromss.training.pretraining import build, start
from cromss.training.state import Inputs, Training, autocast
from cromss.training.step import objective_of

MARGIN = 8  # pixels by which a patch exceeds its crop: the paper cuts 256 out of 264
SIDES = ("recipe", "ours")

INPUT, FORWARD, OBJECTIVE, OBJECTIVE_BACK, BACK, OPTIMIZER = PARTS = (
    "input: augment, scale",
    "network forward",
    "objective forward",
    "objective backward",
    "network backward",
    "optimizer",
)

Loss = Callable[[dict[str, Tensor], Batch], Tensor]  # logits of every modality, the batch they are of


class Meter(Protocol):
    """What is told of the parts of a step: a Clock, a Tally."""

    def part(self, name: str) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Side:
    """A network in training and the loss it is trained on."""

    config: RunConfig
    training: Training
    inputs: Callable[[Batch], dict[str, Tensor]]
    loss: Loss


class Seen(NamedTuple):
    """What a step saw, detached: the loss, the logits of every modality, the batch as it was cut."""

    loss: Tensor
    logits: dict[str, Tensor]
    batch: Batch


def make_side(name: str, config: RunConfig, device: torch.device) -> Side:
    """`ours` as configured, or the `recipe`; both begin with the same weights. Raises ValueError as the network does."""
    inputs = inputs_of(config)
    network = build(config, inputs, len(DYNAMIC_WORLD)).to(device)
    if name == "ours":
        layout = inputs if config.scaling.channels_last else _contiguous(inputs)
        return Side(config, start(config, network, world=1), layout, our_loss(config, device))
    own = config.model_copy(update={"optim": config.optim.model_copy(update={"precision": "auto"})})
    return Side(own, start_recipe(own, network), _contiguous(inputs), the_recipes_loss(own))


def _contiguous(inputs: Inputs) -> Callable[[Batch], dict[str, Tensor]]:
    return lambda batch: {modality: image.contiguous() for modality, image in inputs(batch).items()}


def inputs_of(config: RunConfig) -> Inputs:
    """All bands of the modalities that the network fuses, as uint8 codes."""
    bands = {name: sensor(name).bands for name in config.model.fusion.modalities}
    return Inputs(bands, "uint8", config.model.scaling)


def our_loss(config: RunConfig, device: torch.device, compile: str | None = None) -> Loss:
    """Our objective at the end of the ramps; `compile`: `objective` or `none`, in place of `scaling.compile`."""
    if compile:
        config = config.model_copy(update={"scaling": config.scaling.model_copy(update={"compile": compile})})
    objective = objective_of(config, device)
    # As tensors, as training passes them: a compiled objective would take a number for a constant.
    alpha = torch.tensor(config.objective.alpha.end, dtype=torch.float64, device=device)
    gamma = torch.tensor(config.objective.gamma.end, dtype=torch.float64, device=device)
    return lambda logits, batch: objective(logits, batch.labels, alpha=alpha, gamma=gamma, valid=batch.valid).loss


def the_recipes_loss(config: RunConfig) -> Loss:
    """The recipe's loss at the end of the ramps."""
    ends = config.objective.alpha.end, config.objective.gamma.end
    return lambda logits, batch: recipe_loss(logits, batch.labels, *ends, config.objective.confidence)


def step(side: Side, batch: Batch, device: torch.device, meter: Meter) -> Seen:
    """The step of `training.step.Step` at the end of the ramps, the backward pass in two.

    The objective sees the logits as leaves, and the network goes on from their gradients: the same numbers, but the
    objective's part can be timed apart.
    """
    with meter.part(INPUT):
        batch = augment(batch.to(device), side.config.data.augment)
        images = side.inputs(batch)
    with meter.part(FORWARD), autocast(device, side.config.optim.precision):
        logits = side.training.network(images)
    leaves = {name: z.detach().requires_grad_() for name, z in logits.items()}
    with meter.part(OBJECTIVE):
        loss = side.loss(leaves, batch)
    with meter.part(OBJECTIVE_BACK):
        loss.backward()
    with meter.part(BACK):
        side.training.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(list(logits.values()), [leaf.grad for leaf in leaves.values()])
    with meter.part(OPTIMIZER):
        side.training.optimizer.step()
    return Seen(loss.detach(), {name: z.detach() for name, z in logits.items()}, batch)


def random_batch(bands: dict[str, tuple[str, ...]], classes: int, pairs: int, size: int) -> Batch:
    """`pairs` patches of random codes and labels, as the stream delivers them, size x size pixels."""
    draw = torch.Generator().manual_seed(0)

    def codes(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=draw, dtype=torch.uint8)

    return Batch(
        images={name: codes(256, pairs, len(names), size, size) for name, names in bands.items()},
        bands=bands,
        labels=codes(classes, pairs, size, size),
        ids=[str(row) for row in range(pairs)],
        epochs=torch.zeros(pairs, dtype=torch.int64),
        keys=torch.randint(2**62, (pairs,), generator=draw),
    )
