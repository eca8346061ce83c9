"""A pretrained network as one uses it on images: physical values in, class logits out, for each modality it knows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cromss.contract import Contract, Encoding
from cromss.landcover import Scheme, scheme
from cromss.networks.fusion import FusionNetwork
from cromss.sensors import sensor
from cromss.training import segmenter_file


@dataclass(frozen=True)
class Model:
    """The network in evaluation mode, its card and the file it came from."""

    network: FusionNetwork
    card: segmenter_file.SegmenterCard
    path: Path

    @classmethod
    def open(cls, where: str | Path, device: torch.device | str = "cpu") -> "Model":
        """From a run's folder or its `segmenter.safetensors`. Raises ValueError for anything else, an encoder for instance:
        an encoder alone knows no classes."""
        path = file_of(where)
        network, card = segmenter_file.load(path)
        return cls(network.to(device, memory_format=torch.channels_last), card, path)  # several times as fast on a CPU

    @property
    def scheme(self) -> Scheme:
        """The classes it predicts."""
        return scheme(self.card.scheme)

    @property
    def modalities(self) -> tuple[str, ...]:
        """In the network's own order."""
        return self.network.modalities

    def bands(self, modality: str) -> tuple[str, ...]:
        """What it is fed, in this order."""
        return self.card.bands[modality]

    def contract(self, modality: str) -> Contract | None:
        """What its bands mean: product, unit, order, statistics of the training data."""
        return self.card.contracts.get(modality)

    @torch.inference_mode()
    def logits(self, modality: str, pixels: Tensor, encoding: Encoding = "raw", valid: Tensor | None = None) -> Tensor:
        """(B, C, H, W) of the modality's bands, in the sensor's unit or as uint8 codes -> logits (B, K, H, W), float32.

        Pixels that are not `valid` (B, H, W) enter as the code 0, as they do in a store, whatever is in them. A size that
        the encoder's stride does not divide is extended by repeating its border, and cut again.
        """
        own, bands = sensor(modality), self.bands(modality)
        if encoding == "raw":
            low = torch.as_tensor(own.interval(bands)[0], device=pixels.device)[:, None, None]
            unknown = ~torch.isfinite(pixels.float()).all(1, keepdim=True)
            if valid is not None:
                unknown |= ~valid[:, None]
            pixels = torch.where(unknown, low, pixels.float())
        elif valid is not None:
            pixels = pixels * valid[:, None].to(pixels.dtype)
        height, width = pixels.shape[-2:]
        image = self.card.scaling(pixels, own, bands, encoding).contiguous(memory_format=torch.channels_last)
        stride = self.network.encoder(modality).output_stride
        right, below = -width % stride, -height % stride
        if right or below:
            image = F.pad(image, (0, right, 0, below), mode="replicate")
        return self.network.logits(modality, image)[..., :height, :width].float()


def file_of(where: str | Path) -> Path:
    """The whole network of a run's folder; a file as it is."""
    path = Path(where)
    return path / segmenter_file.NAME if path.is_dir() else path


def mean_log_probabilities(logits: Mapping[str, Tensor], valid: Mapping[str, Tensor] | None = None) -> Tensor:
    """log of the mean of the modalities' softmax, (B, K, H, W); of those alone that have data, where `valid` (B, H, W) is
    given. Where none has, -inf for every class."""
    if valid is None:
        stacked = torch.stack([own.log_softmax(1) for own in logits.values()])
        return stacked.logsumexp(0) - torch.tensor(float(len(stacked))).log()
    stacked = torch.stack(
        [torch.where(valid[name][:, None], own.log_softmax(1), -torch.inf) for name, own in logits.items()]
    )
    count = torch.stack([valid[name] for name in logits]).sum(0).clamp(min=1)
    return stacked.logsumexp(0) - count.log()[:, None]
