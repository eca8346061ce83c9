"""The objective's tests: the golden numbers are found or skipped."""

from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"


@pytest.fixture
def golden():
    """golden("c01_*") -> the arrays of that file."""

    def read(pattern: str) -> dict[str, np.ndarray]:
        found = sorted(GOLDEN.glob(pattern))
        if not found:
            pytest.skip("the golden numbers are not on this machine; numpy_paper.py stands in for them")
        with np.load(found[0], allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}

    return read


@pytest.fixture
def batch():
    """batch(seed, ...) -> float64 logits of two modalities, labels with 10 % ignored, valid with a nodata corner."""

    def draw(seed: int = 0, batch: int = 2, classes: int = 5, size: tuple[int, int] = (12, 10)):
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, classes, *size)
        logits = {m: 2 * torch.randn(shape, generator=generator, dtype=torch.float64) for m in ("s1", "s2")}
        labels = torch.randint(0, classes, (batch, *size), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
        valid = torch.ones(labels.shape, dtype=torch.bool)
        valid[0, :3, :4] = False
        return logits, labels, valid

    return draw
