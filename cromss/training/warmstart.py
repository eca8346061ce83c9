"""Encoders to begin from: `pretraining.warm_start: {s2: FILE_OR_RUN}`, checked before anything is trained."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from cromss.config import RunConfig
from cromss.contract import Contract, require_same
from cromss.networks.encoders import load_card, load_encoder
from cromss.networks.heads import load_into


def files(config: RunConfig) -> dict[str, Path]:
    """modality -> encoder file; a run's or trial's folder stands for the encoder that it left. Empty: begin at random."""
    found = {}
    for modality, where in getattr(config.pretraining, "warm_start", {}).items():
        path = Path(where)
        found[modality] = path / "encoders" / f"{modality}.safetensors" if path.is_dir() else path
        if not found[modality].exists():
            raise ValueError(f"pretraining.warm_start.{modality}={where}: no such encoder ({found[modality]})")
    return found


def digests(config: RunConfig) -> dict[str, str]:
    """modality -> sha256 of the file: what a run that begins from it depends on, wherever the file lies."""
    return {modality: hashlib.sha256(path.read_bytes()).hexdigest() for modality, path in files(config).items()}


def check(config: RunConfig, contracts: Mapping[str, Contract]) -> None:
    """Hold the cards against the run and the store (`contracts`: what the networks are fed with). Raises ValueError."""
    for modality, path in files(config).items():
        if modality not in contracts:
            raise ValueError(f"pretraining.warm_start.{modality}: the run trains {', '.join(contracts)}")
        card, model, contract = load_card(path), config.model, contracts[modality]
        ours = {"encoder": model.encoder, "modality": modality, "bands": contract.bands, "scaling": model.scaling}
        theirs = {"encoder": card.architecture, "modality": card.modality, "bands": card.bands, "scaling": card.scaling}
        for key in ours:
            if theirs[key] != ours[key]:
                raise ValueError(
                    f"pretraining.warm_start.{modality}: {path} has {key} {theirs[key]}, the run {ours[key]}"
                )
        if card.depth < model.depth:
            raise ValueError(
                f"pretraining.warm_start.{modality}: {path} has {card.depth} stages, model.depth={model.depth} needs more"
            )
        if card.contract is not None:
            require_same(contract, "the pretraining store", card.contract, str(path), encoding=False)


def begin(network: nn.Module, config: RunConfig) -> None:
    """Put the files' weights into the encoders. Raises ValueError where they do not fit."""
    for modality, path in files(config).items():
        load_into(network.encoder(modality), load_encoder(path)[0])
