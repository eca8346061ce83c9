"""`cromss.load_encoder`: a pretrained encoder that knows its bands, their unit and its scaling."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from cromss.api import pixels as judged
from cromss.contract import Encoding, require_same
from cromss.data.patch import Patch
from cromss.networks import encoders
from cromss.networks.heads import load_into
from cromss.networks.in_runs import encoders_in
from cromss.networks.scaling import Scaling
from cromss.networks.segmenter import example_image, on_meta, require_divisible
from cromss.sensors import sensor

Pixels = np.ndarray | Tensor | Patch | Sequence[Patch]


class Encoder(nn.Module):
    """A pretrained encoder: pixels in the sensor's unit -> feature maps, fine to coarse.

    card      what is known of it: architecture, modality, bands, scaling, contract of its training data, method, ...
    network   the network itself, an encoder of segmentation-models-pytorch: `prepare(...)` -> [input, *stages]
    channels  of each stage, `strides` alike: (64, 256, 512, 1024, 2048) at (2, 4, 8, 16, 32) for a ResNet-50
    """

    def __init__(self, network: nn.Module, card: encoders.EncoderCard, path: Path) -> None:
        super().__init__()
        self.network, self.card, self.path = network, card, path
        side, channels = example_image(1).shape[-1], len(card.bands)
        with torch.no_grad():
            stages = functional_call(network, on_meta(network), (example_image(channels),))
        # the image itself comes first; transformers give nothing at stride 2
        self._stages = tuple(number for number, stage in enumerate(stages) if number and stage.shape[1])
        self.channels = tuple(stages[number].shape[1] for number in self._stages)
        self.strides = tuple(side // stages[number].shape[-1] for number in self._stages)

    @property
    def modality(self) -> str:
        """`s1`, `s2`, ..."""
        return self.card.modality

    @property
    def bands(self) -> tuple[str, ...]:
        """What it reads, in this order."""
        return self.card.bands

    @property
    def scaling(self) -> Scaling:
        """From the sensor's unit to the network's input."""
        return self.card.scaling

    def forward(
        self,
        pixels: Pixels,
        bands: Sequence[str] | str | None = None,
        encoding: Encoding = "raw",
        *,
        check: bool = True,
    ) -> list[Tensor]:
        """The feature maps of every stage, (B, channels[i], H / strides[i], W / strides[i]); arguments as of `prepare`.

        Of one image (C,H,W), or one Patch, the maps have no batch dimension.
        """
        image = self.prepare(pixels, bands, encoding, check=check)
        stages = self.network(image if image.ndim == 4 else image[None])
        found = [stages[number] for number in self._stages]
        return found if image.ndim == 4 else [stage[0] for stage in found]

    def prepare(
        self,
        pixels: Pixels,
        bands: Sequence[str] | str | None = None,
        encoding: Encoding = "raw",
        *,
        check: bool = True,
    ) -> Tensor:
        """The network's input, float (B,C,H,W) or (C,H,W): bands in its order, scaled as in training, on its device.

        pixels    (B,C,H,W) or (C,H,W), NumPy or torch, in the sensor's unit, as the sensor delivers them: Sentinel-1 in dB,
                  Sentinel-2 in DN (10000 x reflectance, without the offset of baseline 04.00). Or a Patch, or several:
                  these know their bands and product, which are compared with what the encoder was trained on
        bands     their names in the order of the axis, in any order, more than are needed too; left out, the pixels
                  must have as many bands as the encoder reads and are taken to be in its order
        encoding  "uint8": the 8-bit codes of a patch store instead (mean ± 2 std)
        check     refuse what is plainly in another unit

        Height and width must be multiples of the coarsest stride. Values that are not finite, and those under the mask of a
        masked array, become mean - 2 std of their band, the code 0: what a store holds, and the encoder has seen, where
        there is no data. Gaps filled with zeros stay 0. Either way the features around a gap mean little: mask them.

        Raises ValueError naming both sides.
        """
        if isinstance(pixels, Patch):
            return self._of_patches([pixels], check)[0]
        if isinstance(pixels, Sequence) and pixels and all(isinstance(one, Patch) for one in pixels):
            return self._of_patches(pixels, check)
        image = _array(pixels, encoding)
        held = self._held(image, bands)
        index = judged.order(held, "the pixels", self.bands, str(self))
        require_divisible(image, self.network)
        if check and encoding == "raw":
            judged.check_unit(_judgeable(image), self.modality, held, named=bands is not None)
        weight = next(self.network.parameters())
        image, card = image[..., index, :, :].to(weight.device), sensor(self.modality)
        if encoding == "raw":
            low = torch.as_tensor(card.interval(self.bands)[0], device=image.device)[:, None, None]
            image = image.float()
            image = torch.where(torch.isfinite(image), image, low)
        return self.scaling(image, card, self.bands, encoding).to(weight.dtype)

    def _held(self, image: Tensor, bands: Sequence[str] | str | None) -> tuple[str, ...]:
        """The bands of the image's axis. Raises ValueError unless there is one name for each."""
        count = image.shape[-3]
        if bands is not None:
            return judged.band_names(self.modality, bands, count)
        if count == len(self.bands):
            return self.bands
        last = image.shape[-1] == len(self.bands)
        way_out = (
            "put the bands first: numpy.moveaxis(pixels, -1, -3)" if last else "name yours, in their order: bands=[...]"
        )
        raise ValueError(
            f"{self} reads {len(self.bands)} bands ({', '.join(self.bands)}); the pixels have {count}: {way_out}"
        )

    def _of_patches(self, patches: Sequence[Patch], check: bool) -> Tensor:
        """Input of the encoder's bands of some patches, whose contracts are compared with the training data's."""
        images = []
        for patch in patches:
            owner = f"patch {patch.patch_id}"
            if self.modality not in patch.images:
                raise ValueError(f"{self} reads {self.modality}; {owner} has {', '.join(patch.images) or 'no image'}")
            brought = patch.contracts[self.modality]
            index = judged.order(brought.bands, owner, self.bands, str(self))
            if self.card.contract is not None:
                require_same(brought.select(self.bands, owner), owner, self.card.contract, str(self), encoding=False)
            images.append(patch.images[self.modality][index])
        if sizes := {image.shape[1:] for image in images if image.shape != images[0].shape}:
            first, other = ("x".join(map(str, size)) for size in (images[0].shape[1:], sizes.pop()))
            raise ValueError(f"patches of {first} and of {other} pixels make no batch: give them one by one")
        return self.prepare(np.stack(images), self.bands, check=check)

    def __str__(self) -> str:
        return f"the {self.modality} encoder {self.path}"

    def __repr__(self) -> str:
        card = self.card
        told = [card.method, *(f"{name} {value}" for name, value in (("epoch", card.epoch), ("seed", card.seed))
                               if value is not None)]  # fmt: skip
        gives = ", ".join(f"{c} at 1/{stride}" for c, stride in zip(self.channels, self.strides, strict=True))
        return (
            f"Encoder {card.architecture} ({', '.join(part for part in told if part) or 'origin unknown'})\n"
            f"  reads {card.modality} {' '.join(self.bands)} [{sensor(card.modality).unit}], scaling {self.scaling.kind}\n"
            f"  gives {gives}"
        )


def load_encoder(path_or_run: str | Path, modality: str | None = None) -> Encoder:
    """A pretrained encoder, in evaluation mode, on the CPU.

    path_or_run  an encoder of ours (.safetensors), or the folder of a run or of a sweep's trial that holds
                 `encoders/<modality>.safetensors`
    modality     `s1`, `s2`, ...: which of a run's encoders; may be left out where there is one only

    Raises ValueError, by name, for anything else. Nothing is downloaded, no pickle is opened.

    >>> import cromss
    >>> encoder = cromss.load_encoder("run", "s2")
    >>> encoder                                                   # doctest: +NORMALIZE_WHITESPACE
    Encoder tu-test_resnet (cromss-middle, epoch 3, seed 0)
      reads s2 B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B10 B11 B12 [DN], scaling mean_2std
      gives 32 at 1/2, 32 at 1/4, 48 at 1/8, 192 at 1/16, 96 at 1/32
    >>> [patch] = cromss.open_store("store").sample(1)
    >>> [tuple(features.shape) for features in encoder(patch)]
    [(32, 32, 32), (32, 16, 16), (48, 8, 8), (192, 4, 4), (96, 2, 2)]

    Pixels of one's own are in the sensor's unit. Bands go by name, whatever their order; what does not fit is refused:

    >>> import numpy as np
    >>> dn = np.random.default_rng(0).integers(300, 3000, (5, 12, 64, 96)).astype(np.uint16)
    >>> encoder(dn)                                               # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: the s2 encoder ... reads 13 bands (B1, ..., B12); the pixels have 12: name yours, in their order: bands=[...]
    >>> encoder(dn, bands="12")                                   # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: the s2 encoder ... missing in the pixels: B10 (there: B1, B2, B3, B4, B5, B6, B7, B8, B8A, B9, B11, B12)
    >>> encoder(patch.images["s2"] / 10_000)                      # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: s2 values reach from ... to ...: reflectance, or scaled already, not DN; give 10000 * reflectance; ...

    Gradients are torch's affair, as ever: `with torch.inference_mode():` to extract features, `encoder.train()` to go on
    training.
    """
    path = _file(Path(path_or_run), modality)
    state, card = encoders.load_encoder(path)
    if modality not in (None, card.modality):
        raise ValueError(f"{path}: is an encoder of {card.modality}, not of {modality}")
    with torch.random.fork_rng(devices=[]):  # the random weights that are overwritten cost the caller no random number
        network = encoders.build_encoder(card.architecture, len(card.bands), card.depth)
    try:
        load_into(network, state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Encoder(network, card, path).eval()


def _file(where: Path, modality: str | None) -> Path:
    """The encoder's file. Raises ValueError where there is none, or where there are several and none was named."""
    if not where.is_dir():
        if where.exists() and where.suffix != ".safetensors":
            raise ValueError(
                f"{where}: no .safetensors encoder of ours; other people's checkpoints come in by "
                f"python -m cromss.export {where} --from auto --to safetensors --out DIR"
            )
        return where
    found = encoders_in(where)
    if not found:
        trials = sorted(path.parent.parent for path in where.glob("trials/*/encoders/*.safetensors"))
        hint = (
            f"; it is a sweep: name a trial of it, such as {trials[0]}" if trials else "; was the pretraining finished?"
        )
        raise ValueError(f"{where}: no encoders/*.safetensors in there{hint}")
    if modality is None and len(found) > 1:
        raise ValueError(
            f"{where}: holds encoders of {', '.join(found)}; say which: load_encoder({str(where)!r}, 's2')"
        )
    name = modality or next(iter(found))
    if name not in found:
        raise ValueError(f"{where}: has no encoder of {name}; there: {', '.join(found)}")
    return found[name]


def _array(pixels: np.ndarray | Tensor, encoding: Encoding) -> Tensor:
    """(C,H,W) or (B,C,H,W): codes as they are, values of any integer type or precision as float32 or float64; NaN where a
    masked array has no data. Raises ValueError."""
    if encoding not in ("raw", "uint8"):
        raise ValueError(f"encoding={encoding!r}: valid: raw (the sensor's unit), uint8 (codes of a patch store)")
    if not isinstance(pixels, Tensor):
        mask = np.ma.getmaskarray(pixels) if isinstance(pixels, np.ma.MaskedArray) else None
        array = np.asarray(pixels)
        if array.dtype.kind not in "uif":
            raise ValueError(f"pixels are {array.dtype}; expected numbers, or a Patch")
        small = np.float32 if array.dtype.itemsize <= 4 else np.float64
        dtype = small if array.dtype.kind == "f" else np.uint8 if array.dtype == np.uint8 else np.int32
        pixels = torch.from_numpy(
            np.array(array, dtype, order="C")
        )  # a copy: torch knows no strides below 0, no other-endians
        if mask is not None and mask.any():
            pixels = pixels.float().masked_fill(torch.from_numpy(mask), torch.nan)
    if pixels.ndim not in (3, 4):
        raise ValueError(f"pixels are {tuple(pixels.shape)}; expected (C, H, W) or (B, C, H, W)")
    if (pixels.dtype == torch.uint8) != (encoding == "uint8"):
        is_codes = pixels.dtype == torch.uint8
        way_out = (
            'say encoding="uint8" if they are codes of a patch store' if is_codes else 'leave out encoding="uint8"'
        )
        raise ValueError(f"pixels are {pixels.dtype} and encoding={encoding!r}: {way_out}")
    return pixels


def _judgeable(image: Tensor) -> np.ndarray:
    """NumPy's view of it, as NumPy knows its type."""
    image = image.detach().cpu()
    return (image.float() if image.dtype in (torch.bfloat16, torch.float16) else image).numpy()
