"""A folder as users of the Hugging Face Hub expect it: model.safetensors, config.json, README.md.

Where timm has the architecture, names and config.json are timm's: its `hf-hub:` and `local-dir:` load the folder in one call.
Otherwise they are SMP's.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cromss.exchange import feeding, libraries, model_card
from cromss.files import Folder
from cromss.networks.encoders import EncoderCard, State, write_state

if TYPE_CHECKING:
    from cromss.exchange.formats import Outgoing

WEIGHTS = "model.safetensors"


def write(folder: Path, encoder: "Outgoing") -> str:
    """Write the folder; the Python that loads it."""
    card = encoder.card
    state, library, missing = _named(encoder.state, card)
    write_state(folder / WEIGHTS, state, encoder.header("timm" if library == "timm" else "smp"))
    files = Folder.of(folder)
    files.write("config.json", (json.dumps(_config(card, library, encoder.licence), indent=2) + "\n").encode())
    loading = _loading(card, library, missing, folder.name)
    files.write("README.md", model_card.written(encoder, library, loading).encode())
    return loading


def _named(state: State, card: EncoderCard) -> tuple[State, str, list[str]]:
    """(tensors, whose names they have, what a timm model has beyond them)."""
    try:
        renamed, missing = libraries.to_timm(state, card)
        return renamed, "timm", missing
    except ValueError:
        return libraries.to_smp(state, card), "segmentation-models-pytorch", []


def _config(card: EncoderCard, library: str, licence: str) -> dict[str, Any]:
    own = {"card": card.model_dump(mode="json"), "bands": card.bands, "unit": feeding.unit(card),
           "scaling_formula": feeding.formula(card), "scaling_numbers": feeding.numbers(card)}  # fmt: skip
    if library != "timm":
        return {"architecture": card.architecture, "library_name": library, "encoder_depth": card.depth,
                "in_channels": len(card.bands), "cromss": own}  # fmt: skip
    sizes = {"dynamic_img_size": True} if libraries.isotropic(card.architecture) else {}
    model = libraries.timm_model(card.architecture, len(card.bands))
    usual = model.pretrained_cfg
    return {
        "architecture": libraries.plain(card.architecture),
        "num_classes": 0,
        "num_features": model.num_features,
        "model_args": {"in_chans": len(card.bands)} | sizes,
        "pretrained_cfg": {
            "input_size": [len(card.bands), *(usual.get("input_size") or (3, 224, 224))[1:]],
            "fixed_input_size": False,
            "num_classes": 0,
            "first_conv": usual.get("first_conv"),
            "classifier": usual.get("classifier"),
            "license": licence,
        },
        "cromss": own,
    }


def _loading(card: EncoderCard, library: str, missing: list[str], folder: str) -> str:
    channels = len(card.bands)
    if library == "timm" and not missing:
        return f"""\
import timm

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()  # from the Hub: "hf-hub:USER/REPOSITORY"
features = model.forward_intermediates(x, intermediates_only=True)  # maps, the finest first"""
    fetched = f'# from the Hub: huggingface_hub.hf_hub_download("USER/REPOSITORY", "{WEIGHTS}")'
    if library == "timm":
        return f"""\
import timm
from safetensors.torch import load_file

model = {libraries.timm_call(card)}.eval()
model.load_state_dict(load_file("{folder}/{WEIGHTS}"), strict=False)  {fetched}
features = model.forward_intermediates(x, intermediates_only=True)  # {len(missing)} of its tensors are no part of this"""
    return f"""\
import segmentation_models_pytorch as smp
from safetensors.torch import load_file

encoder = smp.encoders.get_encoder("{card.architecture}", in_channels={channels}, depth={card.depth}, weights=None).eval()
encoder.load_state_dict(load_file("{folder}/{WEIGHTS}"))  {fetched}
features = encoder(x)  # the input and {card.depth} maps, the finest first"""
