"""Comparing batches."""

import torch


def assert_same(first, second) -> None:
    """Two batches equal in every field."""
    assert first.ids == second.ids
    for name in ("labels", "clean", "valid", "seasons", "epochs", "keys"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a is None) == (b is None), name
        assert a is None or torch.equal(a, b), name
    assert first.images.keys() == second.images.keys()
    for name, image in first.images.items():
        assert torch.equal(image, second.images[name])
