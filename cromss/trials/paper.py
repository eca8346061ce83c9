"""Table 1 of the paper, and where it may stand beside ours."""

from collections.abc import Iterable, Mapping
from typing import Any

# mIoU in percent, (mean, std) of 3 repeats; frozen, then fine-tuned, S1, then S2
_TABLE1 = {
    "random": ((29.16, 0.06), (28.36, 0.22), (31.50, 0.14), (33.56, 0.28)),
    "DINO": (None, None, (37.81, 0.08), (36.95, 0.55)),
    "MoCo": ((34.25, 0.27), (31.80, 0.46), (37.67, 0.57), (34.86, 0.63)),
    "single-modal": ((34.77, 0.30), (34.13, 0.19), (40.88, 0.07), (41.06, 0.24)),
    "midF": ((34.64, 0.48), (33.86, 0.16), (41.52, 0.35), (41.17, 0.28)),
    "lateF": ((34.15, 0.14), (34.58, 0.48), (41.59, 0.75), (41.76, 0.76)),
    "CromSS-midF": ((34.38, 0.02), (35.17, 0.63), (42.89, 0.35), (42.58, 0.34)),
    "CromSS-lateF": ((34.80, 0.37), (33.94, 0.55), (41.12, 0.11), (42.55, 0.36)),
}
_COLUMNS = (("s1", "frozen"), ("s1", "finetuned"), ("s2", "frozen"), ("s2", "finetuned"))
PAPER: dict[str, dict[tuple[str, str], tuple[float, float]]] = {
    arm: {column: cell for column, cell in zip(_COLUMNS, cells, strict=True) if cell} for arm, cells in _TABLE1.items()
}
ROWS = tuple(_TABLE1)  # in the order of the paper


def paper_text(name: str, column: tuple[str, str]) -> str:
    """The paper's number for an arm, `42.89 ± 0.35`, or nothing."""
    cell = {arm.casefold(): cells for arm, cells in PAPER.items()}.get(name.casefold(), {}).get(column)
    return f"{cell[0]:.2f} ± {cell[1]:.2f}" if cell else ""


def paper_applies(sweep: Mapping[str, Any], trials: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the paper's Table 1 was measured as these trials were: DFC2020 itself, judged by a PSPNet of depth 3."""
    judged = [one for trial in trials for one in trial["downstream"] if one["mode"] != "zero_shot"]
    same = all(
        (one.get("scheme"), one.get("head"), one.get("head_depth")) == ("dfc2020", "pspnet", 3) for one in judged
    )
    return bool(sweep.get("paper_rows")) and bool(judged) and same
