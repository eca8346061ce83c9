"""Encoders: built by name, kept with their card, imported from other people's checkpoints."""

import argparse
import contextlib
import difflib
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cromss.contract import Contract
from cromss.networks.scaling import MeanStd, Scaling
from cromss.networks.transformers import registered
from cromss.sensors import sensor
from cromss.settings import Settings

State = dict[str, Tensor]


class Backbone(Settings):
    """The U-Net that every modality gets: encoder by name, depth, channels of its decoder from coarse to fine."""

    encoder: str = "resnet50"
    depth: int = pydantic.Field(default=5, ge=3, le=5)
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)

    @pydantic.field_validator("encoder")
    @classmethod
    def _known(cls, name: str) -> str:
        return check_encoder_name(name)

    @pydantic.model_validator(mode="after")
    def _one_block_per_stage(self) -> "Backbone":
        if len(self.decoder_channels) != self.depth:
            raise ValueError(
                f"decoder_channels={list(self.decoder_channels)}: needs one value per encoder stage, depth is "
                f"{self.depth}; for example {[256, 128, 64, 32, 16][: self.depth]}"
            )
        return self


class EncoderCard(Settings):
    """What one must know to use an encoder: how to rebuild it and what to feed it."""

    architecture: str
    depth: int = 5
    modality: str
    bands: tuple[str, ...]
    scaling: Scaling = MeanStd()
    contract: Contract | None = None  # of the data it was trained on; None: nobody knows
    method: str = ""  # how it was trained, e.g. CromSS-midF
    store: str = ""  # digest of the patch store it was trained on
    epoch: int | None = None
    seed: int | None = None
    extra: dict[str, str] = pydantic.Field(default_factory=dict)

    @pydantic.model_validator(mode="after")
    def _bands_exist(self) -> "EncoderCard":
        sensor(self.modality).select(self.bands)
        return self


def check_encoder_name(name: str) -> str:
    """`name` if it can be built. Raises ValueError with the nearest valid names otherwise."""
    import segmentation_models_pytorch as smp  # seconds: not at --help
    import timm

    ours = ("timm-", "plain-")  # deprecated; what `registered` adds
    built_in = [known for known in smp.encoders.get_encoder_names() if not known.startswith(ours)]
    if name in built_in or (name.startswith("tu-") and timm.is_model(name.removeprefix("tu-"))):
        return name
    known = [*built_in, *(f"tu-{model}" for model in timm.list_models())]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(
        f"encoder {name!r}: unknown; {hint}valid: {', '.join(built_in)}, or tu-<name of a timm model>, "
        "for example tu-convnext_atto"
    )


def build_encoder(name: str, channels: int, depth: int = 5) -> nn.Module:
    """A randomly initialised encoder: image (B, channels, H, W) -> depth + 1 features, the image first.

    Nothing is ever downloaded. Raises ValueError for an unknown name and for models without a feature pyramid.
    """
    import segmentation_models_pytorch as smp

    with named_errors(name):
        return smp.encoders.get_encoder(
            registered(check_encoder_name(name)), in_channels=channels, depth=depth, weights=None
        )


@contextlib.contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Name the encoder in what the library says about it (`Unsupported model downsampling pattern.`)."""
    try:
        yield
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if name in str(error):
            raise
        raise ValueError(f"encoder {name}: {error}") from error


# --- our own files ----------------------------------------------------------------------------------------------------


def save_encoder(path: str | Path, encoder: nn.Module, card: EncoderCard) -> None:
    """Write the encoder as safetensors with its card as JSON in the header. The file appears whole or not at all."""
    write_whole(Path(path), encoder, card)


def write_whole(path: Path, network: nn.Module, card: Settings) -> None:
    """Write a network's weights as safetensors with its card as JSON in the header. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # cloned: safetensors takes no two tensors of one memory
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(state, aside, metadata={"card": card.model_dump_json()})
        with open(aside, "rb") as file:
            os.fsync(file.fileno())  # the name must not reach the disk before the content
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def load_encoder(path: str | Path) -> tuple[State, EncoderCard]:
    """(state, card) of a file that `save_encoder` wrote. Raises ValueError for any other file."""
    state, metadata = _read_safetensors(Path(path))
    return state, _card(Path(path), metadata)


def load_card(path: str | Path) -> EncoderCard:
    """The card alone, without the weights. Raises ValueError as `load_encoder`."""
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors ({error})") from None
    return _card(path, metadata)


def _card(path: Path, metadata: dict[str, str]) -> EncoderCard:
    if "card" not in metadata:
        raise ValueError(f"{path}: has no encoder card, so its bands and scaling are unknown; import it and state them")
    try:
        return EncoderCard.model_validate_json(metadata["card"])
    except ValueError as error:
        raise ValueError(f"{path}: its card cannot be read: {' '.join(str(error).split())}") from None


# --- other people's files ---------------------------------------------------------------------------------------------

# The authors' checkpoints by fusion: middle, late; then single.
_AUTHORS = {"s1": ("net.encoder1.", "net.model1.encoder."), "s2": ("net.encoder.", "net.model2.encoder.")}
_COMMON = ("net.encoder.", "encoder_q.", "backbone.", "encoder.", "")  # single, MoCo, DINO, others, torchvision
_CONTAINERS = ("state_dict", "teacher", "model", "model_state_dict")


def import_encoder(
    path: str | Path,
    *,
    modality: str,
    bands: Iterable[str] | str,
    architecture: str = "resnet50",
    scaling: Scaling | None = None,
    depth: int = 5,
    method: str = "",
) -> tuple[State, EncoderCard]:
    """The encoder of a foreign checkpoint (.pth, .pt, .ckpt, .safetensors), and the card the caller states for it.

    Knows the key prefixes of the authors' checkpoints (middle, late, single), SSL4EO-S12's MoCo and DINO, and
    torchvision's names. Pickled code is never run. Raises ValueError when tensors are missing, unknown or of another
    shape, naming both sides.
    """
    path = Path(path)
    bands = sensor(modality).select(bands)
    expected = build_encoder(architecture, len(bands), depth).state_dict()
    checkpoint = _tensors(_read_foreign(path), path)
    state = _strip_prefix(checkpoint, expected, modality, f"{path}: as {architecture} of {modality}")
    check_shapes(expected, state, f"{path}", bands)
    card = EncoderCard(
        architecture=architecture,
        depth=depth,
        modality=modality,
        bands=bands,
        scaling=scaling or MeanStd(),
        method=method or path.stem,
    )
    return {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}, card


def _strip_prefix(checkpoint: State, expected: State, modality: str, what: str) -> State:
    prefixes = [*_AUTHORS.get(modality, ()), *_COMMON]
    prefixes = list(dict.fromkeys([*prefixes, *(f"module.{prefix}" for prefix in prefixes)]))
    candidates = [_below(checkpoint, prefix) for prefix in prefixes]
    matched = [len(expected.keys() & candidate.keys()) for candidate in candidates]
    state = candidates[matched.index(max(matched))]  # the first of the best: the modality's own prefix comes first
    for name, tensor in expected.items():  # absent from checkpoints of old torch versions, used by nobody here
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, tensor)
    missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or unknown:
        raise ValueError(
            f"{what}: {max(matched)} of {len(expected)} tensors matched; missing: {some(missing)}; "
            f"unknown: {some(unknown)}; prefixes tried: {', '.join(map(repr, prefixes))}"
        )
    return state


def _below(checkpoint: State, prefix: str) -> State:
    """The tensors under `prefix`, without it and without the classifier of the pretext task."""
    names = ((name, name.removeprefix(prefix)) for name in checkpoint if name.startswith(prefix))
    return {short: checkpoint[name] for name, short in names if not short.startswith("fc.")}


def _tensors(content: Any, path: Path) -> State:
    """The first state dict in a checkpoint's usual containers."""
    for _ in range(2):  # e.g. {"teacher": {"state_dict": ...}}
        inner = [
            content[key] for key in _CONTAINERS if isinstance(content, dict) and isinstance(content.get(key), dict)
        ]
        content = inner[0] if inner else content
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise ValueError(f"{path}: holds no state dict; looked at the top and under {', '.join(_CONTAINERS)}")
    return tensors


def _read_foreign(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)[0]
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # DINO keeps its arguments beside the weights
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"{path}: holds more than tensors and plain values, or is no checkpoint; it is not opened, because that "
            f"could run its code; save its state dict alone ({reason})"
        ) from None
    except (OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path}: cannot be read as a checkpoint ({' '.join(str(error).split())})") from None


def _read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors ({error})") from None


def check_shapes(expected: State, state: Mapping[str, Tensor], owner: str, bands: tuple[str, ...] = ()) -> None:
    """Raises ValueError when a tensor of `state`, which `owner` names, has another shape than expected."""
    wrong = [name for name in expected if expected[name].shape != state[name].shape]
    if not wrong:
        return
    name = wrong[0]
    theirs, ours = tuple(state[name].shape), tuple(expected[name].shape)
    if len(wrong) == 1 and theirs[:1] + theirs[2:] == ours[:1] + ours[2:]:  # the first convolution: (out, in, h, w)
        listed = f" ({', '.join(bands)})" if bands else ""
        raise ValueError(f"{owner} was trained on {theirs[1]} input channels, {ours[1]} bands are given{listed}")
    raise ValueError(f"{name} is {theirs} in {owner}, {ours} in the encoder; another architecture?")


def some(names: Iterable[str], limit: int = 3) -> str:
    """The first few names and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + more) or "none"
