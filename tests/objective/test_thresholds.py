"""Histogram thresholds against the sort: a stated error, one-sided, and nothing asked of the device."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from torch._subclasses.fake_tensor import FakeTensorMode

from cromss.objective.thresholds import ROUNDS, Exact, Histogram, _count
from cromss.objective.weights import label_weights

RELATIVE = 2.0**-17
CONFIDENCES = arrays("float32", (2, 5, 7), elements=st.floats(0, 1, width=32))
LABELS = arrays("uint8", (2, 5, 7), elements=st.sampled_from([0, 1, 2, 255]))
HOW = [(scope, per_class) for scope in ("batch", "image") for per_class in (False, True)]


@pytest.mark.parametrize(("scope", "per_class"), HOW)
@given(confidence=CONFIDENCES, labels=LABELS, alpha=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_weights_are_never_too_low_and_at_most_the_stated_error_too_high(scope, per_class, confidence, labels, alpha):
    maps = torch.from_numpy(confidence), torch.from_numpy(labels), alpha, scope, per_class
    exact = label_weights(*maps, classes=3, threshold=Exact())
    fast = label_weights(*maps, classes=3, threshold=Histogram())
    normal = torch.from_numpy(confidence) >= torch.finfo(torch.float32).tiny  # below, floats themselves are that coarse
    assert (fast >= exact)[normal].all()
    assert (fast <= exact * (1 + 1.01 * RELATIVE))[normal].all()


@given(confidence=CONFIDENCES, labels=LABELS, alpha=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_all_three_histograms_find_the_sorted_value_itself(confidence, labels, alpha):
    confidence, known = torch.from_numpy(confidence), torch.from_numpy(labels) != 255
    if not known.any():
        return
    rank = torch.tensor([max(1, int(alpha * known.sum()))])
    group = torch.zeros(1, 1, 1, dtype=torch.long)
    found, _ = _count(confidence, known, group, 1, lambda count: rank, "batch", ROUNDS)
    assert found == confidence[known].sort(descending=True).values[rank - 1]


def test_a_share_of_one_trusts_every_label_fully():
    confidence = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1)) ** 8
    weights = label_weights(confidence, torch.zeros(3, 8, 8, dtype=torch.uint8), 1.0, threshold=Histogram())
    assert torch.equal(weights, torch.ones(3, 8, 8))


@pytest.mark.parametrize("threshold", [Histogram(), Exact()])
@pytest.mark.parametrize(("scope", "per_class"), HOW)
def test_no_shape_depends_on_the_data_and_nothing_is_read_back(threshold, scope, per_class):
    with FakeTensorMode():  # tensors without numbers: whoever asks for one is refused
        maps = torch.rand(2, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8), torch.tensor(0.5, dtype=torch.float64)
        assert label_weights(*maps, scope, per_class, classes=9, threshold=threshold).shape == (2, 8, 8)
