"""Whose checkpoint it is: one row of the table = key prefixes, the bands in the order that the weights have, input scaling."""

from collections.abc import Mapping
from dataclasses import dataclass

from cromss.networks.encoders import PREFIXES, Published
from cromss.networks.scaling import MeanStd, Reflectance, Scaling
from cromss.sensors import SENTINEL1, SENTINEL2
from cromss.settings import suggest

AUTO = "auto"
RGB = ("B4", "B3", "B2")
_S1, _S2, _S2_9 = SENTINEL1.bands, SENTINEL2.bands, SENTINEL2.subsets["9"]


@dataclass(frozen=True)
class Layout:
    """One kind of checkpoint.

    prefixes   modality -> what its encoder's names begin with (also after DDP's `module.`)
    bands      modality -> the band sets it was published for, each in the order of its first convolution
    scalings   modality -> what its input was scaled by
    generic    the names say nothing about the bands: these bands and this scaling are those of ImageNet's RGB, a default that
               the file's own header may overrule
    absent     names of another layout: a file that has them is none of this one
    digests    how the sha256 of the published files begins
    """

    name: str
    story: str
    prefixes: Mapping[str, str]
    bands: Mapping[str, tuple[tuple[str, ...], ...]]
    scalings: Mapping[str, Scaling | Published]
    method: str
    generic: bool = False
    absent: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()

    def sets(self) -> str:
        """`s1: VV,VH; s2: 13 or 9 bands` for tables."""
        said = []
        for modality, sets in self.bands.items():
            words = [",".join(one) if len(one) < 4 else str(len(one)) for one in sets]
            said.append(f"{modality}: {' or '.join(words)}{' bands' if words[-1].isdigit() else ''}")
        return "; ".join(said)

    def scaled(self) -> str:
        """`s1: mean_2std; s2: reflectance`, shorter where they are alike."""
        kinds = {modality: scaling.kind for modality, scaling in self.scalings.items()}
        return next(iter(kinds.values())) if len(set(kinds.values())) == 1 else "; ".join(
            f"{modality}: {kind}" for modality, kind in kinds.items()
        )  # fmt: skip


# ImageNet's networks know RGB in [0, 1] and no DN. Here 1 is reflectance 0.3558 (DN 3558), where the true-colour image that
# ESA delivers with every L1C product is saturated; then ImageNet's mean and standard deviation.
TRUE_COLOUR = 3558.0
IMAGENET = Published(
    bands=RGB,
    mean=tuple(TRUE_COLOUR * value for value in (0.485, 0.456, 0.406)),
    std=tuple(TRUE_COLOUR * value for value in (0.229, 0.224, 0.225)),
    clip=(0.0, TRUE_COLOUR),
)
# torchgeo/models/resnet.py, _mean_s1 and _std_s1; its S1 weights of SSL4EO-S12 and DeCUR
_TORCHGEO_S1 = Published(bands=_S1, mean=(-12.59, -20.26), std=(5.26, 5.91))
# the same file, _mean_s2 and _std_s2: SoftCon
_TORCHGEO_S2 = Published(
    bands=_S2,
    mean=(1612.9, 1397.6, 1322.3, 1373.1, 1561.0, 2108.4, 2390.7, 2318.7, 2581.0, 837.7, 22.0, 2195.2, 1537.4),
    std=(791.0, 854.3, 878.7, 1144.9, 1127.5, 1164.2, 1276.0, 1249.5, 1345.9, 577.5, 47.5, 1340.0, 1142.9),
)


def _authors(fusion: str, absent: tuple[str, ...] = ()) -> Layout:
    return Layout(
        f"authors-{fusion}", f"CromSS's published checkpoints, {fusion}", PREFIXES[f"authors-{fusion}"],
        {"s1": (_S1,), "s2": (_S2, _S2_9)}, {"s1": MeanStd(), "s2": MeanStd()}, f"CromSS, authors' {fusion}", absent=absent,
    )  # fmt: skip


def _torchgeo(weights: str, method: str, bands: tuple[str, ...], scaling: Scaling | Published, *digests: str) -> Layout:
    modality = "s1" if bands == _S1 else "s2"
    return Layout(
        f"torchgeo-{weights.lower().replace('_', '-')}", f"torchgeo's ResNet*_Weights.{weights}",
        {modality: PREFIXES["torchvision"][modality]}, {modality: (bands,)}, {modality: scaling}, f"{method} (torchgeo)",
        digests=digests,
    )  # fmt: skip


def _imagenet(name: str, story: str, prefix: str) -> Layout:
    return Layout(
        name, story, {"s2": PREFIXES[prefix]["s2"]}, {"s2": (RGB,)}, {"s2": IMAGENET}, name, generic=True
    )  # fmt: skip


_LAYOUTS = (
    _authors("middle"),
    _authors("late"),
    _authors("single", absent=("net.encoder1.",)),
    # their loader writes S1 as 8-bit codes of mean +- 2 std, S2 as DN / 1e4 (pretrain_ssl/datasets/SSL4EO/ssl4eo_dataset.py)
    Layout("ssl4eo-moco", "SSL4EO-S12's MoCo v2", PREFIXES["ssl4eo-moco"], {"s1": (_S1,), "s2": (_S2, RGB)},
           {"s1": MeanStd(), "s2": Reflectance()}, "MoCo v2 (SSL4EO-S12)"),
    Layout("ssl4eo-dino", "SSL4EO-S12's DINO, the teacher", {"s2": PREFIXES["ssl4eo-dino"]["s2"]}, {"s2": (_S2,)},
           {"s2": Reflectance()}, "DINO (SSL4EO-S12)"),
    _torchgeo("SENTINEL2_ALL_MOCO", "MoCo", _S2, Reflectance(), "59bfdff9", "df8b932e"),
    _torchgeo("SENTINEL2_ALL_DINO", "DINO", _S2, Reflectance(), "d6c330e9"),
    _torchgeo("SENTINEL2_ALL_DECUR", "DeCUR", _S2, Reflectance(), "fc6b09ff"),
    _torchgeo("SENTINEL2_ALL_SOFTCON", "SoftCon", _S2, _TORCHGEO_S2),
    _torchgeo("SENTINEL2_RGB_MOCO", "MoCo", RGB, Reflectance(), "e3a335e3", "2b57ba8b"),
    _torchgeo("SENTINEL1_GRD_MOCO", "MoCo", _S1, _TORCHGEO_S1, "906e4356"),
    _torchgeo("SENTINEL1_GRD_DECUR", "DeCUR", _S1, _TORCHGEO_S1, "f0e69ba2"),
    _torchgeo("SENTINEL1_GRD_SOFTCON", "SoftCon", _S1, _TORCHGEO_S1),
    _imagenet("timm", "a timm model of ImageNet's RGB, or what `--to timm` wrote", "torchvision"),
    _imagenet("torchvision", "a torchvision ResNet of ImageNet's RGB, or what `--to torchvision` wrote", "torchvision"),
    _imagenet("smp", "a whole SMP network around an encoder of ImageNet's RGB, or what `--to smp` wrote", "smp"),
)  # fmt: skip
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _LAYOUTS}


def layout(name: str) -> Layout:
    """The row of that name. Raises ValueError listing the known ones."""
    if name not in LAYOUTS:
        raise ValueError(f"--from {name}: unknown layout{suggest(name, [AUTO, *LAYOUTS])}")
    return LAYOUTS[name]
