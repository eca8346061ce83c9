"""The contract of the data room: what a source yields (Patch) and what a training step receives (Batch)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # torch takes seconds to import; reading tiles needs none of it
    import torch

from cromss.contract import Contract
from cromss.landcover import IGNORE


@dataclass(frozen=True)
class Patch:
    """One acquisition of one location, as a source reads it.

    images  modality -> (bands, H, W) in the sensor's unit (S1: dB, S2: DN without the baseline-04.00 offset), any dtype
    contracts   modality -> which bands these are, in which order, product and unit
    label   (H, W) uint8 class numbers of the store's scheme, IGNORE where unlabelled
    clean   (H, W) uint8, the true classes where they are known (synthetic Earth), else None
    valid   (H, W) bool, True where every modality has image data; None = everywhere
    """

    patch_id: str
    location_id: str
    acquisition: str
    images: dict[str, np.ndarray]
    contracts: dict[str, Contract]
    label: np.ndarray
    clean: np.ndarray | None = None
    valid: np.ndarray | None = None
    split: str = "train"
    crs: str = ""
    transform: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # affine a b c d e f, pixel to CRS
    lon: float = float("nan")  # centre, WGS 84 degrees
    lat: float = float("nan")
    tile: str = ""  # "r0c1" of a patch that was cut from a larger one, else empty
    notes: dict[str, str] = field(default_factory=dict)  # what ingest did, e.g. {"s2_offset": "1000 removed"}

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.label.shape


@dataclass
class Batch:
    """B patches on their way to the device: as stored, neither cropped nor normalised.

    images   modality -> (B, C, H, W), uint8 codes or raw values, bands in the order of `bands`
    bands    modality -> band names
    labels   (B, H, W) uint8
    clean    (B, H, W) uint8 or None
    valid    (B, H, W) bool or None (= everywhere)
    seasons  (B, n, H, W) uint8: the labels of all n slots of the location (for label smoothing), padded with IGNORE;
             None unless asked for
    ids      patch ids, in row order
    epochs   (B,) int64: the epoch each row belongs to
    keys     (B,) int64: random key of (seed, epoch, patch); augmentation draws from it and from nothing else
    """

    images: dict[str, torch.Tensor]
    bands: dict[str, tuple[str, ...]]
    labels: torch.Tensor
    ids: list[str]
    epochs: torch.Tensor
    keys: torch.Tensor
    clean: torch.Tensor | None = None
    valid: torch.Tensor | None = None
    seasons: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def with_bands(self, bands: dict[str, tuple[str, ...]]) -> Batch:
        """Some modalities' bands, by name and in that order. Raises ValueError naming what it lacks and holds."""
        images = {}
        for name, wanted in bands.items():
            held = self.bands.get(name, ())
            if missing := [band for band in wanted if band not in held]:
                raise ValueError(f"the batch lacks {name} {', '.join(missing)}; it holds {', '.join(held) or 'none'}")
            same = wanted == held
            images[name] = self.images[name] if same else self.images[name][:, [held.index(band) for band in wanted]]
        return replace(self, images=images, bands=dict(bands))

    def with_maps(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The same batch with `change` done to everything that has pixels."""

        def maybe(pixels: torch.Tensor | None) -> torch.Tensor | None:
            return None if pixels is None else change(pixels)

        return replace(
            self,
            images={name: change(image) for name, image in self.images.items()},
            labels=change(self.labels),
            clean=maybe(self.clean),
            valid=maybe(self.valid),
            seasons=maybe(self.seasons),
        )

    def apply(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The same batch with `change` done to each of its tensors."""
        return replace(self.with_maps(change), epochs=change(self.epochs), keys=change(self.keys))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device` (asynchronously from pinned memory)."""
        return self.apply(lambda tensor: tensor.to(device, non_blocking=True))


def trainable(label: np.ndarray, valid: np.ndarray | None) -> bool:
    """Whether a patch has at least one labelled pixel with image data."""
    usable = label != IGNORE
    return bool((usable if valid is None else usable & valid).any())
