"""Small networks, stores and row groups for the audit's tests."""

import numpy as np
import torch
from tiny import TINY

from cromss.auditing.scores import encoded
from cromss.auditing.settings import AuditConfig
from cromss.auditing.walk import Seen
from cromss.config import resolve
from cromss.contract import physical
from cromss.data.patch import Patch
from cromss.data.store import PatchStore, StoreWriter
from cromss.landcover import IGNORE
from cromss.settings import overlay
from cromss.training import segmenter_file
from cromss.training.pretraining import build, contracts_for, inputs_for

SMALL = {"seasons": "one", "limit": 6, "flagged": 0.1}
S2 = ("B4", "B3", "B2")


def network(store: PatchStore, folder, *layers) -> None:
    """An untrained network of that store, as a run leaves it in `folder`."""
    config = resolve(overlay(TINY, *layers))
    torch.manual_seed(0)
    made = build(config, inputs_for(config, store), len(store.scheme)).eval()
    segmenter_file.save(folder, made, segmenter_file.card(config, contracts_for(config, store), store))


def config(**settings) -> AuditConfig:
    return AuditConfig(**SMALL | settings)


def rows(label, joint, suggested=None, clean=None, valid=None, answers=range(9)) -> Seen:
    """One row of one line of pixels with one modality of that confidence."""
    label, joint = np.array([[label]], np.uint8), np.array([[joint]], np.float32)
    valid = np.ones(label.shape, bool) if valid is None else np.array([[valid]], bool)
    best = np.zeros(label.shape, np.uint8) if suggested is None else np.array([[suggested]], np.uint8)
    told = {"patch_id": "a/b", "location_id": "a", "tile": "", "acquisition": "b", "split": "train", "crs": "EPSG:32632",
            "transform": [10.0, 0, 5e5, 0, -10.0, 5e6]}  # fmt: skip
    return Seen(
        rows=[told], label=np.where(valid, label, np.uint8(IGNORE)), judged=np.isin(label, list(answers)) & valid,
        clean=None if clean is None else np.array([[clean]], np.uint8), valid=valid, confidence={"s2": joint}, joint=joint,
        code=encoded(joint), entropy=np.full(label.shape, 127, np.uint8), disagreement=None, best=best,
        sure=np.full(label.shape, 254, np.uint8),
    )  # fmt: skip


def store_of(path, labels, *, names=None, valid=None, scheme="dynamic-world", bands=None, size=(32, 32), crs="EPSG:32632",
             encoding="uint8"):  # fmt: skip
    """A store with a place for every label map (H, W) and images of noise."""
    bands = bands or {"s1": ("VV", "VH"), "s2": S2}
    draw = np.random.default_rng(0)
    with StoreWriter(path, scheme=scheme, bands=bands, size=size, encoding=encoding) as writer:
        for number, label in enumerate(labels):
            name = names[number] if names else f"place-{number}/2021"
            images = {"s1": draw.normal(-12, 4, (2, *size)).astype(np.float32),
                      "s2": draw.uniform(300, 3000, (3, *size)).astype(np.float32)}  # fmt: skip
            writer.add([Patch(
                patch_id=name, location_id=f"place-{number}", acquisition="20210612", label=np.asarray(label, np.uint8),
                images={modality: images[modality] for modality in bands},
                contracts={modality: physical(modality, own) for modality, own in bands.items()},
                valid=None if valid is None else valid[number], crs=crs,
                transform=(10.0, 0.0, 5e5 + 320.0 * number, 0.0, -10.0, 5e6),
            )], "train", number % 2)  # fmt: skip
    return PatchStore.open(path)
