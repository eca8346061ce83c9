"""The whole pretrained network in one file: what zero-shot scoring needs, where a downstream task needs an encoder alone."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open

from cromss.config import ModelConfig, RunConfig
from cromss.contract import Contract
from cromss.data.store import PatchStore
from cromss.landcover import scheme
from cromss.networks.encoders import write_whole
from cromss.networks.fusion import FusionNetwork
from cromss.networks.scaling import Scaling
from cromss.settings import Settings

NAME = "segmenter.safetensors"


class SegmenterCard(Settings):
    """How to rebuild it, what to feed it and what its classes are."""

    model: ModelConfig
    bands: dict[str, tuple[str, ...]]  # by modality
    scaling: Scaling
    contracts: dict[str, Contract]
    scheme: str
    store: str = ""  # digest of the patch store it was trained on


def card(config: RunConfig, contracts: Mapping[str, Contract], store: PatchStore) -> SegmenterCard:
    """Of a network that `config` trained on `store`, fed as `contracts` say."""
    bands = {modality: contract.bands for modality, contract in contracts.items()}
    return SegmenterCard(
        model=config.model, bands=bands, scaling=config.model.scaling, contracts=dict(contracts), scheme=store.scheme.name,
        store=store.digest,
    )  # fmt: skip


def save(folder: Path, network: FusionNetwork, card: SegmenterCard) -> None:
    """Write weights and card into `folder`. The file appears whole or not at all."""
    write_whole(folder / NAME, network, card)


def load_card(path: Path) -> SegmenterCard:
    """What the file says of itself. Raises ValueError for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; it would hold the whole pretrained network, which a finished pretraining leaves there"
        ) from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: is no safetensors file ({error})") from None
    if "card" not in metadata:
        raise ValueError(f"{path}: has no card; only a pretraining of ours writes a whole network")
    try:
        return SegmenterCard.model_validate_json(metadata["card"])
    except ValueError as error:
        if '"architecture"' in metadata["card"]:
            raise ValueError(
                f"{path}: is an encoder, which knows no classes; give the run's folder, or its {NAME}"
            ) from None
        raise ValueError(f"{path}: its card cannot be read: {' '.join(str(error).split())}") from None


def load(path: Path) -> tuple[FusionNetwork, SegmenterCard]:
    """The network, in evaluation mode, and its card. Raises ValueError as `load_card`."""
    own = load_card(path)
    channels = {modality: len(bands) for modality, bands in own.bands.items()}
    network = own.model.fusion.build(own.model, channels, len(scheme(own.scheme)))
    network.load_state_dict(safetensors.torch.load_file(path))
    return network.eval(), own
