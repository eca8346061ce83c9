"""A first convolution for other bands than the encoder was trained on: `--adapt-bands`, explicit, named, never silent."""

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor

from cromss.contract import Contract
from cromss.networks.encoders import EncoderCard, Published, State, build_encoder
from cromss.networks.scaling import Scaling
from cromss.settings import Settings


class Select(Settings):
    """Keep the weights of the bands that stay; the others' contribution is lost."""

    kind: Literal["select"] = "select"

    def __call__(self, weight: Tensor, trained: Sequence[str], wanted: Sequence[str]) -> Tensor:
        if new := [band for band in wanted if band not in trained]:
            raise ValueError(
                f"--adapt-bands select: {', '.join(new)} are new: the encoder was trained on {', '.join(trained)}, "
                f"{', '.join(wanted)} are wanted; take zero or mean"
            )
        return weight[:, [trained.index(band) for band in wanted]]

    def told(self, trained: Sequence[str], wanted: Sequence[str]) -> str:
        return f"{', '.join(_lost(trained, wanted)) or 'no band'} dropped, the other weights as they were"


class Zero(Settings):
    """New bands get weight 0: the features stay what they were, until fine-tuning finds a use for them."""

    kind: Literal["zero"] = "zero"

    def __call__(self, weight: Tensor, trained: Sequence[str], wanted: Sequence[str]) -> Tensor:
        _keeps_all(self.kind, trained, wanted)
        return _widened(weight, trained, wanted, lambda weight: torch.zeros_like(weight[:, 0]))

    def told(self, trained: Sequence[str], wanted: Sequence[str]) -> str:
        return f"{', '.join(_lost(wanted, trained)) or 'no band'} added with weight 0"


class Mean(Settings):
    """New bands get the mean of the others' weights, and all are rescaled by old count / new count: an input that is alike in
    all bands gives the same features."""

    kind: Literal["mean"] = "mean"

    def __call__(self, weight: Tensor, trained: Sequence[str], wanted: Sequence[str]) -> Tensor:
        _keeps_all(self.kind, trained, wanted)
        return _widened(weight, trained, wanted, lambda weight: weight.mean(1)) * (len(trained) / len(wanted))

    def told(self, trained: Sequence[str], wanted: Sequence[str]) -> str:
        factor = f"all rescaled by {len(trained)}/{len(wanted)}"
        return f"{', '.join(_lost(wanted, trained)) or 'no band'} added with the mean of the others' weights, {factor}"


Adaptation = Annotated[Select | Zero | Mean, pydantic.Field(discriminator="kind")]
ADAPTATIONS: dict[str, Select | Zero | Mean] = {one.kind: one for one in (Select(), Zero(), Mean())}


def adapt(
    state: State, card: EncoderCard, wanted: Sequence[str], how: Select | Zero | Mean, scaling: Scaling | None = None
) -> tuple[State, EncoderCard]:
    """The encoder for the bands `wanted`; its card says what was done. `scaling`: another input scaling, where the encoder's
    own has no numbers for the new bands.

    Raises ValueError where `how` cannot make these bands, or the architecture has no convolution that reads them.
    """
    wanted, trained = tuple(wanted), card.bands
    if wanted == trained:
        return state, card
    if isinstance(card.scaling, Published) and scaling is None:
        card.scaling.of(wanted)
    state = dict(state)
    for name in readers(card.architecture, card.depth):
        state[name] = how(state[name], trained, wanted).contiguous()
    before = f"{card.extra['bands_adapted']}; then " if "bands_adapted" in card.extra else ""
    done = {
        "bands_adapted": f"{before}{how.kind}: {how.told(trained, wanted)}",
        "bands_trained_on": card.extra.get("bands_trained_on", ", ".join(trained)),
    }
    if scaling is not None and scaling != card.scaling:
        done["scaling_trained_with"] = card.scaling.kind
    contract = card.contract and _contract(card.contract, wanted)
    made = {"bands": wanted, "scaling": scaling or card.scaling, "contract": contract, "extra": card.extra | done}
    return state, EncoderCard.model_validate(card.model_dump() | {k: _dumped(v) for k, v in made.items()})


@functools.cache
def readers(architecture: str, depth: int) -> tuple[str, ...]:
    """The names of the weights (out, bands, height, width) that read the bands: usually one, the first convolution's. Raises
    ValueError where something else reads them."""
    one, other = (build_encoder(architecture, channels, depth).state_dict() for channels in (3, 4))
    found = tuple(name for name in one if one[name].shape != other[name].shape)
    if strange := [name for name in found if one[name].ndim != 4 or one[name].shape[1] != 3]:
        raise ValueError(
            f"{strange[0]} of {architecture} reads the bands and is no convolution; its bands cannot be changed"
        )
    return found


def _dumped(value: object) -> object:
    return value.model_dump() if isinstance(value, Settings) else value


def _contract(contract: Contract, wanted: tuple[str, ...]) -> Contract:
    if set(wanted) <= set(contract.bands):
        return contract.select(wanted, "the encoder")
    return Contract.of(contract.modality, wanted, contract.encoding, contract.product)


def _keeps_all(kind: str, trained: Sequence[str], wanted: Sequence[str]) -> None:
    if lost := _lost(trained, wanted):
        raise ValueError(
            f"--adapt-bands {kind}: adds bands, and {', '.join(lost)} would be dropped: the encoder was trained on "
            f"{', '.join(trained)}, {', '.join(wanted)} are wanted; drop with select first"
        )


def _lost(of: Sequence[str], among: Sequence[str]) -> list[str]:
    return [band for band in of if band not in among]


def _widened(weight: Tensor, trained: Sequence[str], wanted: Sequence[str], new: Callable[[Tensor], Tensor]) -> Tensor:
    columns = [weight[:, trained.index(band)] if band in trained else new(weight) for band in wanted]
    return torch.stack(columns, 1)
