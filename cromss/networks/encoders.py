"""Encoders: built by name, kept with their card, imported from other people's checkpoints."""

import argparse
import contextlib
import difflib
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cromss.contract import Contract, Encoding
from cromss.networks.scaling import MeanStd, Reflectance, Scaling, ZScore
from cromss.networks.transformers import registered
from cromss.sensors import Sensor, sensor
from cromss.settings import Settings
from cromss.whole import written_whole

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


class Published(Settings):
    """(x - mean) / std with the numbers that were published with the weights, in the sensor's unit, one per band of `bands`;
    x is first clipped to `clip` where they ask for that. No choice for a run of ours: it belongs to other people's encoders."""

    kind: Literal["published"] = "published"
    needs_raw: ClassVar[bool] = True

    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    clip: tuple[float, float] | None = None

    def __call__(self, pixels: Tensor, sensor: Sensor, bands: Iterable[str], encoding: Encoding) -> Tensor:
        if encoding != "raw":
            raise ValueError("scaling published needs raw values, not uint8 codes; ingest the data with --encoding raw")
        mean, std = (torch.tensor(one, device=pixels.device)[:, None, None] for one in self.of(bands))
        pixels = pixels.float()
        return ((pixels if self.clip is None else pixels.clamp(*self.clip)) - mean) / std

    def of(self, bands: Iterable[str]) -> tuple[list[float], list[float]]:
        """(mean, std) of those bands, in that order. Raises ValueError naming the bands that nothing was published for."""
        bands = list(bands)
        if missing := [band for band in bands if band not in self.bands]:
            raise ValueError(
                f"scaling published: has numbers for {', '.join(self.bands)}, none for {', '.join(missing)}; state another "
                f"with --scaling mean_2std|reflectance|zscore"
            )
        index = [self.bands.index(band) for band in bands]
        return [self.mean[i] for i in index], [self.std[i] for i in index]


class EncoderCard(Settings):
    """What one must know to use an encoder: how to rebuild it and what to feed it."""

    architecture: str
    depth: int = 5
    modality: str
    bands: tuple[str, ...]
    scaling: Annotated[MeanStd | Reflectance | ZScore | Published, pydantic.Field(discriminator="kind")] = MeanStd()
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
    write_state(path, network.state_dict(), {"card": card.model_dump_json()})


def write_state(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors with `metadata` in the header. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # cloned: safetensors takes no two tensors of one memory
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with written_whole(path) as aside:
        save_file(state, aside, metadata=metadata)


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
        raise ValueError(
            f"{path}: has no encoder card, so bands and scaling are unknown; import it: cromss export --from"
        )
    try:
        return EncoderCard.model_validate_json(metadata["card"])
    except ValueError as error:
        raise ValueError(f"{path}: its card cannot be read: {' '.join(str(error).split())}") from None


# --- other people's files ---------------------------------------------------------------------------------------------

# Whose checkpoint -> modality -> what its encoder's names begin with; `cromss/exchange/layouts.py` says what to feed them.
PREFIXES: dict[str, dict[str, str]] = {
    "authors-middle": {"s1": "net.encoder1.", "s2": "net.encoder."},
    "authors-late": {"s1": "net.model1.encoder.", "s2": "net.model2.encoder."},
    "authors-single": {"s1": "net.encoder.", "s2": "net.encoder."},
    "ssl4eo-moco": {"s1": "encoder_q.", "s2": "encoder_q."},
    "ssl4eo-dino": {"s1": "backbone.", "s2": "backbone."},
    "smp": {"s1": "encoder.", "s2": "encoder."},
    "torchvision": {"s1": "", "s2": ""},
}
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
    prefixes = [by_modality.get(modality, by_modality["s1"]) for by_modality in PREFIXES.values()]
    state = encoder_state(read_checkpoint(path), expected, prefixes, f"{path}: as {architecture} of {modality}")
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


def encoder_state(checkpoint: State, expected: State, prefixes: Iterable[str], what: str) -> State:
    """The encoder's tensors: those under the prefix, bare or after DDP's `module.`, that fits best, the first of equals.

    Raises ValueError, beginning with `what`, where tensors are missing or unknown.
    """
    prefixes = list(prefixes)
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


def read_checkpoint(path: Path) -> State:
    """The tensors of a foreign checkpoint, from its usual containers. Pickled code is never run. Raises ValueError."""
    content = _read_foreign(path)
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
