"""torchvision's wheel is built for CUDA; beside a CPU torch its operators cannot load and importing it fails
("operator torchvision::nms does not exist"), and with it timm, segmentation-models-pytorch and torchmetrics.

`make_importable()` declares the two schemas that the import needs if, and only if, the binary cannot be loaded. Nothing
is faked: calling such an operator still says that torchvision's C++ operators are missing. Where they load, nothing is
done. It must run before the first import of any of those packages, in every process.
"""

import importlib.util
from pathlib import Path

import torch

_declared: torch.library.Library | None = None  # kept: a Library takes its operators with it when collected


def make_importable() -> None:
    """Let `import torchvision` succeed beside a CPU build of torch."""
    global _declared
    spec = importlib.util.find_spec("torchvision")  # finds, does not import
    if _declared is not None or spec is None:
        return
    try:
        for binary in Path(spec.submodule_search_locations[0]).glob("_C.*"):
            torch.ops.load_library(str(binary))
    except OSError:
        _declared = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            _declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
