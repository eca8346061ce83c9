"""The same tensors under the names of torchvision, timm, torchgeo and segmentation-models-pytorch.

That the names and shapes agree does not mean that two libraries compute the same: every file is loaded into its library's own
model, and its features are compared with the encoder's, before it is written (torchgeo builds its ResNets with timm).
"""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cromss.networks.encoders import EncoderCard, State, build_encoder, named_errors, some
from cromss.networks.transformers import PREFIX, isotropic

TOLERANCE = 1e-5  # of the features, relative to their largest
_SIDE = 64  # pixels of the image that proves it; several patches of every transformer that is built here


def plain(architecture: str) -> str:
    """The name without what SMP puts before timm's models."""
    return architecture.removeprefix(PREFIX)


def rebuilt(state: State, card: EncoderCard) -> nn.Module:
    """The encoder of a card, in evaluation mode."""
    encoder = build_encoder(card.architecture, len(card.bands), card.depth)
    with named_errors(card.architecture):
        encoder.load_state_dict(state)
    return encoder.eval()


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((ours - theirs).abs().max() / ours.abs().max().clamp_min(torch.finfo(torch.float32).tiny)).item()


@torch.no_grad()
def prove(name: str, encoder: nn.Module, channels: int, theirs: Any) -> float:
    """Compare the encoder's coarsest features with those that `theirs` (image -> features) computes; the relative difference.
    Raises ValueError where no map is the same."""
    image = torch.randn(2, channels, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    ours = encoder.model(image)[0] if hasattr(encoder, "patch") else encoder(image)[-1]
    found = [relative(ours, one) for one in theirs(image) if one.shape == ours.shape]
    if not found or min(found) > TOLERANCE:
        raise ValueError(f"{name}: takes the tensors, but computes other features")
    return min(found)


# --- timm, torchgeo ---------------------------------------------------------------------------------------------------


def timm_model(architecture: str, channels: int) -> nn.Module:
    """timm's own model of that name, without a classifier. Raises ValueError where timm has none."""
    import timm

    if not timm.is_model(plain(architecture)):
        raise ValueError(f"timm has no model {plain(architecture)}")
    sizes = {"dynamic_img_size": True} if isotropic(architecture) else {}
    return timm.create_model(plain(architecture), pretrained=False, in_chans=channels, num_classes=0, **sizes)


def timm_call(card: EncoderCard) -> str:
    """The call that makes `timm_model`, as text."""
    more = ", dynamic_img_size=True" if isotropic(card.architecture) else ""
    return f'timm.create_model("{plain(card.architecture)}", in_chans={len(card.bands)}, num_classes=0{more})'


def timm_names(ours: State, theirs: State, architecture: str) -> dict[str, str]:
    """name in the encoder -> name in timm's own model. Raises ValueError where they are not of the same network."""
    found = {name: next((one for one in _candidates(name) if one in theirs), "") for name in ours}
    wrong = [name for name, other in found.items() if not other or theirs[other].shape != ours[name].shape]
    if wrong:
        raise ValueError(f"timm's {plain(architecture)} has other tensors than this encoder: {some(wrong)}")
    return found


def _candidates(name: str) -> Iterable[str]:
    """`model.stages_0.blocks...`: SMP's and features_only's wrapping taken off, the latter joins the first two parts."""
    while True:
        yield name
        head, _, rest = name.partition(".")
        if "_" in head:
            stem, _, number = head.rpartition("_")
            yield f"{stem}.{number}.{rest}"
        if head != "model":
            return
        name = rest


def to_timm(state: State, card: EncoderCard) -> tuple[State, list[str]]:
    """(the tensors under timm's names, those of timm's model that the encoder has not), proven. Raises ValueError."""
    encoder, model = rebuilt(state, card), timm_model(card.architecture, len(card.bands)).eval()
    names = timm_names(state, model.state_dict(), card.architecture)
    renamed = {names[name]: tensor for name, tensor in state.items()}
    missing = model.load_state_dict(renamed, strict=False).missing_keys
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(f"timm's {plain(card.architecture)} gives no features to compare")
    prove("timm", encoder, len(card.bands), lambda image: model.forward_intermediates(image, intermediates_only=True))
    return renamed, missing


# --- torchvision ------------------------------------------------------------------------------------------------------

_RESNETS = ("resnet", "resnext", "wide_resnet")


def to_torchvision(state: State, card: EncoderCard) -> State:
    """The tensors under torchvision's names, proven. Raises ValueError where torchvision has no such ResNet."""
    import torchvision

    name = plain(card.architecture)
    if not name.startswith(_RESNETS) or name not in torchvision.models.list_models(torchvision.models):
        raise ValueError(f"torchvision has no ResNet called {name}")
    model = torchvision.models.get_model(name, weights=None).eval()
    first = model.conv1
    model.conv1 = nn.Conv2d(
        len(card.bands), first.out_channels, first.kernel_size, first.stride, first.padding, bias=first.bias is not None
    )
    names = {ours: next((one for one in _candidates(ours) if one in model.state_dict()), ours) for ours in state}
    renamed = {names[ours]: tensor for ours, tensor in state.items()}
    try:
        missing, unknown = model.load_state_dict(renamed, strict=False)
    except RuntimeError as error:
        raise ValueError(f"torchvision's {name} has other tensors: {' '.join(str(error).split())[:160]}") from None
    if unknown or set(missing) > {"fc.weight", "fc.bias"}:
        raise ValueError(
            f"torchvision's {name} has other tensors than this encoder of {card.depth} stages: {(unknown or missing)[0]}"
        )
    seen: list[Tensor] = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        layer.register_forward_hook(lambda module, given, made: seen.append(made))
    prove("torchvision", rebuilt(state, card), len(card.bands), lambda image: (model(image), seen)[1])
    return renamed


# --- SMP --------------------------------------------------------------------------------------------------------------


def to_smp(state: State, card: EncoderCard) -> State:
    """SMP's names are ours. Raises ValueError for what SMP by itself does not build."""
    if isotropic(card.architecture) is not None:
        raise ValueError(f"SMP builds no pyramid of {card.architecture} without cromss; take timm or onnx")
    rebuilt(state, card)
    return state


# --- what may be missing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Extra:
    """An optional library: what pip calls it and what it is imported as."""

    module: str
    package: str

    def require(self) -> Any:
        """The module. Raises ValueError naming what to install."""
        try:
            return importlib.import_module(self.module)
        except ImportError:
            raise ValueError(f"needs the package {self.package}: pip install 'cromss[export]'") from None
