"""What can be written: one row of the table = a file, or a folder, and the code that loads it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from cromss.exchange import feeding, libraries, onnx_file
from cromss.exchange.story import Story
from cromss.networks.encoders import EncoderCard, State, write_state
from cromss.settings import suggest


@dataclass(frozen=True)
class Outgoing:
    """An encoder on its way out, with what is known about it."""

    state: State
    card: EncoderCard
    story: Story = field(default_factory=Story)
    licence: str = feeding.UNKNOWN
    onnx_input: str = onnx_file.INPUTS[0]

    def header(self, names: str = "smp") -> dict[str, str]:
        """Flat keys that anybody can read; `names`: whose the tensors' names are."""
        return feeding.header(self.card, self.story.metrics(self.card.modality), self.licence, names)


class Format(ABC):
    """A row. safetensors throughout: torchvision, timm, SMP and torchgeo all take a dict of tensors, `load_file` gives one,
    and no pickle travels."""

    name: ClassVar[str]
    target: ClassVar[str]  # file or folder below --out
    story: ClassVar[str]

    def require(self) -> None:  # noqa: B027  (most need nothing)
        """Raises ValueError where a library is missing, naming what to install."""

    @abstractmethod
    def write(self, out: Path, encoder: Outgoing) -> str:
        """Write into the folder `out`; the Python that loads it, given `x` (see `feeding.code`).

        Raises ValueError where this encoder has no such form.
        """


class Ours(Format):
    name, target = "safetensors", "encoder.safetensors"
    story = "cromss's own: the card in the header, and flat keys for anybody else"

    def write(self, out: Path, encoder: Outgoing) -> str:
        header = encoder.header() | {"card": encoder.card.model_dump_json()}
        write_state(out / self.target, encoder.state, header)
        return f"""\
from cromss.networks.encoders import build_encoder, load_encoder

state, card = load_encoder("{self.target}")
encoder = build_encoder(card.architecture, len(card.bands), card.depth).eval()
encoder.load_state_dict(state)
features = encoder(x)  # the input and {encoder.card.depth} maps, the finest first"""


class Torchvision(Format):
    name, target = "torchvision", "torchvision.safetensors"
    story = "state dict of torchvision's ResNets, without fc"

    def write(self, out: Path, encoder: Outgoing) -> str:
        state = libraries.to_torchvision(encoder.state, encoder.card)
        write_state(out / self.target, state, encoder.header("torchvision"))
        conv = state["conv1.weight"]
        bias = "" if "conv1.bias" in state else ", bias=False"
        return f"""\
import torch, torchvision
from safetensors.torch import load_file

model = torchvision.models.{libraries.plain(encoder.card.architecture)}(weights=None).eval()
model.conv1 = torch.nn.Conv2d({conv.shape[1]}, {conv.shape[0]}, {conv.shape[2]}, stride=2, padding={conv.shape[2] // 2}{bias})
model.fc = torch.nn.Identity()  # or a classifier of yours, then with strict=False
model.load_state_dict(load_file("{self.target}"))
features = model(x)  # (batch, {_width(encoder)})"""


class Timm(Format):
    name, target = "timm", "timm.safetensors"
    story = "state dict of timm's model of that name, without classifier"

    def write(self, out: Path, encoder: Outgoing) -> str:
        state, missing = libraries.to_timm(encoder.state, encoder.card)
        write_state(out / self.target, state, encoder.header("timm"))
        strict = (
            f", strict=False)  # {len(missing)} tensors are no part of the encoder and stay random" if missing else ")"
        )
        return f"""\
import timm
from safetensors.torch import load_file

model = {libraries.timm_call(encoder.card)}.eval()
model.load_state_dict(load_file("{self.target}"){strict}
features = model.forward_intermediates(x, intermediates_only=True)  # maps, the finest first{_only(encoder, missing)}"""


class Smp(Format):
    name, target = "smp", "smp.safetensors"
    story = "state dict of segmentation-models-pytorch's encoder"

    def write(self, out: Path, encoder: Outgoing) -> str:
        write_state(out / self.target, libraries.to_smp(encoder.state, encoder.card), encoder.header())
        card = encoder.card
        decoder = "" if card.depth == 5 else f", decoder_channels={(256, 128, 64, 32, 16)[: card.depth]}"
        return f"""\
import segmentation_models_pytorch as smp
from safetensors.torch import load_file

shape = dict(encoder_depth={card.depth}, in_channels={len(card.bands)}, classes=9{decoder})
model = smp.Unet("{card.architecture}", encoder_weights=None, **shape).eval()
model.encoder.load_state_dict(load_file("{self.target}"))
features = model.encoder(x)  # the input and {card.depth} maps, the finest first"""


class Torchgeo(Format):
    name, target = "torchgeo", "torchgeo.safetensors"
    story = "state dict of torchgeo's ResNets, without fc"
    known: ClassVar[tuple[str, ...]] = ("resnet18", "resnet50", "resnet152")

    def write(self, out: Path, encoder: Outgoing) -> str:
        name = libraries.plain(encoder.card.architecture)
        if name not in self.known:
            raise ValueError(f"torchgeo has no model {name} to load it; it has {', '.join(self.known)}")
        state, missing = libraries.to_timm(encoder.state, encoder.card)
        if missing:
            raise ValueError(
                f"torchgeo's {name} has tensors that this encoder of {encoder.card.depth} stages lacks: {missing[0]}"
            )
        write_state(out / self.target, state, encoder.header("timm"))
        return f"""\
from safetensors.torch import load_file
from torchgeo.models import {name}

model = {name}(in_chans={len(encoder.card.bands)}, num_classes=0).eval()
model.load_state_dict(load_file("{self.target}"))
features = model(x)  # (batch, {_width(encoder)})"""


class Onnx(Format):
    name, target = "onnx", "encoder.onnx"
    story = "one ONNX file, any batch and size, the features of every stage, checked with onnxruntime"

    def require(self) -> None:
        onnx_file.require()

    def write(self, out: Path, encoder: Outgoing) -> str:
        names = onnx_file.write(out / self.target, encoder.state, encoder.card, encoder.header(), encoder.onnx_input)
        given = "pixels" if encoder.onnx_input == "physical" else "x"
        what = "values in the sensor's unit: the scaling is in the file" if given == "pixels" else "scaled"
        return f"""\
import onnxruntime

session = onnxruntime.InferenceSession("{self.target}")
features = session.run(None, {{"pixels": {given}.numpy()}})  # {", ".join(names)}; {given}: {what}"""


class HuggingFace(Format):
    name, target = "huggingface", "huggingface"
    story = "a folder for the Hub: model.safetensors, config.json, README.md = model card from the runs"

    def write(self, out: Path, encoder: Outgoing) -> str:
        from cromss.exchange import huggingface

        return huggingface.write(out / self.target, encoder)


FORMATS: dict[str, Format] = {
    one.name: one for one in (Ours(), Torchvision(), Timm(), Smp(), Torchgeo(), Onnx(), HuggingFace())
}


def format_of(name: str) -> Format:
    """The row of that name. Raises ValueError listing the known ones."""
    if name not in FORMATS:
        raise ValueError(f"--to {name}: unknown format{suggest(name, FORMATS)}")
    return FORMATS[name]


def _width(encoder: Outgoing) -> int:
    return libraries.rebuilt(encoder.state, encoder.card).out_channels[-1]


def _only(encoder: Outgoing, missing: list[str]) -> str:
    depth = encoder.card.depth
    staged = missing and depth < 5 and not libraries.isotropic(encoder.card.architecture)
    return f"; the coarsest of the encoder has {_width(encoder)} channels, what is coarser is random" if staged else ""
