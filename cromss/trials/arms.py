"""The rows of the paper's Table 1, rival methods and the ceiling: named overlays of the configuration.

The baselines are controlled: they differ from CromSS in method (and fusion) alone. MoCo, DINO and MIM train the same encoders
on the same patches for as many steps, and read no label.
"""

import os
from dataclasses import dataclass
from typing import Any

from cromss.networks.masked import MIM
from cromss.networks.selfsupervised import DINO, MoCo
from cromss.objective.methods import RIVALS


@dataclass(frozen=True)
class Arm:
    """`label` is the row of the table that the arm belongs to: single-modal S1 and S2 share one."""

    label: str
    overlay: dict[str, Any]


def _trained(fusion: dict[str, Any], method: str) -> dict[str, Any]:
    return {"model": {"fusion": fusion}, "objective": {"method": {"kind": method}}}


def _single(modality: str) -> dict[str, Any]:
    return _trained({"kind": "single", "modality": modality}, "plain") | {"transfer": {"modalities": [modality]}}


def _kind(settings: type) -> str:
    return settings.model_fields["kind"].default


FUSIONS = {"midF": "middle", "lateF": "late"}

ARMS: dict[str, Arm] = {
    "random": Arm("random", {"pretraining": {"kind": "random"}}),
    **{one.title: Arm(one.title, {"pretraining": {"kind": _kind(one)}}) for one in (MoCo, DINO, MIM)},
    "single-s1": Arm("single-modal", _single("s1")),
    "single-s2": Arm("single-modal", _single("s2")),
    "midF": Arm("midF", _trained({"kind": "middle"}, "plain")),
    "lateF": Arm("lateF", _trained({"kind": "late"}, "plain")),
    "CromSS-midF": Arm("CromSS-midF", _trained({"kind": "middle"}, "cromss")),
    "CromSS-lateF": Arm("CromSS-lateF", _trained({"kind": "late"}, "cromss")),
    **{(name := f"{method.title}-{fusion}"): Arm(name, _trained({"kind": kind}, _kind(method)))
       for method in RIVALS for fusion, kind in FUSIONS.items()},
    # Perfect selection: only where the true labels are known. What there is to win.
    "oracle-midF": Arm("oracle-midF", _trained({"kind": "middle"}, "oracle")),
}  # fmt: skip


def imported() -> dict[str, Arm]:
    """MoCo and DINO where their checkpoints are given, in place of our own: CROMSS_MOCO_S1, CROMSS_MOCO_S2, CROMSS_DINO_S1,
    CROMSS_DINO_S2. A trial's parameter `pretraining.kind` says which of the two a row is."""
    found = {}
    for label in ("MoCo", "DINO"):
        paths = {m: os.environ[name] for m in ("s1", "s2") if (name := f"CROMSS_{label}_{m}".upper()) in os.environ}
        if paths:
            scalings = {"s2": {"kind": "reflectance"}}  # trained on reflectance, not on mean +- 2 std
            overlay = {"pretraining": {"kind": "checkpoint", "paths": paths, "scalings": scalings}}
            found[label] = Arm(label, overlay | {"transfer": {"modalities": sorted(paths)}})
    return found


def arm(name: str) -> Arm:
    """The arm of that name. Raises ValueError listing the known ones."""
    from cromss.settings import suggest

    known = ARMS | imported()
    if name not in known:
        raise ValueError(f"arm {name!r}: unknown{suggest(name, known)}")
    return known[name]
