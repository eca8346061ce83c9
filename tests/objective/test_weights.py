import numpy as np
import numpy_paper
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cromss.objective.weights import entropy_weights, label_weights

CONFIDENCE = torch.tensor([[[0.9, 0.8, 0.7], [0.6, 0.5, 0.4], [0.3, 0.2, 0.1]]])
LABELS = torch.tensor([[[0, 0, 1], [1, 1, 0], [0, 1, 1]]])

maps = hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(0, 1, width=32, allow_subnormal=False).map(abs))
label_maps = hnp.arrays(np.uint8, (2, 3, 4), elements=st.sampled_from([0, 1, 2, 255]))
settings = st.tuples(st.sampled_from(["batch", "image", "global"]), st.booleans())


def test_a_3x3_mask_by_hand():
    # floor(0.5 * 9) = 4, the 4th highest of nine is 0.6
    expected = torch.tensor([[[1, 1, 1], [1, 5 / 6, 4 / 6], [3 / 6, 2 / 6, 1 / 6]]])
    torch.testing.assert_close(label_weights(CONFIDENCE, LABELS, 0.5), expected)


def test_a_3x3_mask_by_hand_per_class():
    # class 0: .9 .8 .4 .3, k = 2, w = .8; class 1: .7 .6 .5 .2 .1, k = floor(2.5) = 2, w = .6
    expected = torch.tensor([[[1, 1, 1], [1, 5 / 6, 0.5], [3 / 8, 2 / 6, 1 / 6]]])
    torch.testing.assert_close(label_weights(CONFIDENCE, LABELS, 0.5, per_class=True), expected)


def test_ignored_pixels_enter_no_rank_and_weigh_nothing():
    labels = LABELS.clone()
    labels[0, 0, 0], labels[0, 2, 2] = 255, 255  # seven left, k = 3, the 3rd highest is 0.6
    expected = torch.tensor([[[0, 1, 1], [1, 5 / 6, 4 / 6], [3 / 6, 2 / 6, 0]]])
    torch.testing.assert_close(label_weights(CONFIDENCE, labels, 0.5), expected)
    torch.testing.assert_close(
        label_weights(CONFIDENCE, labels.masked_fill(labels == 255, -1), 0.5, ignore_index=-1), expected
    )


def test_per_image_weights_are_those_of_each_image_alone():
    confidence, labels = torch.cat([CONFIDENCE, CONFIDENCE / 2]), torch.cat([LABELS, LABELS])
    for per_class in (False, True):
        alone = torch.cat(
            [label_weights(f[None], y[None], 0.5, per_class=per_class) for f, y in zip(confidence, labels, strict=True)]
        )
        torch.testing.assert_close(label_weights(confidence, labels, 0.5, "image", per_class), alone)
    assert not torch.equal(label_weights(confidence, labels, 0.5, "batch"), alone)


def test_the_single_threshold_keeps_at_least_the_best_pixel():
    torch.testing.assert_close(label_weights(CONFIDENCE, LABELS, 0.0), CONFIDENCE / 0.9)
    torch.testing.assert_close(label_weights(CONFIDENCE, LABELS, 0.01), CONFIDENCE / 0.9)


def test_per_class_a_class_too_rare_for_its_rank_weighs_nothing():
    labels = torch.where(torch.arange(9).reshape(1, 3, 3) == 4, 7, 0)  # class 7 on one pixel: floor(.5 * 1) = 0
    weights = label_weights(CONFIDENCE, labels, 0.5, per_class=True)
    assert weights[0, 1, 1] == 0
    assert (weights > 0).sum() == 8


def test_per_class_alpha_zero_leaves_the_confidence_itself():
    labels = LABELS.clone()
    labels[0, 0, 0] = 255
    assert torch.equal(label_weights(CONFIDENCE, labels, 0, per_class=True), CONFIDENCE * (labels != 255))


@pytest.mark.parametrize("per_class", [False, True])
def test_a_threshold_of_zero_gives_weight_one(per_class):
    assert torch.equal(label_weights(torch.zeros(1, 3, 3), LABELS, 0.5, per_class=per_class), torch.ones(1, 3, 3))


@pytest.mark.parametrize("scope", ["batch", "image", "global"])
@pytest.mark.parametrize("per_class", [False, True])
def test_nothing_labelled_weighs_nothing(scope, per_class):
    weights = label_weights(CONFIDENCE, torch.full_like(LABELS, 255), 0.5, scope, per_class)
    assert torch.equal(weights, torch.zeros(1, 3, 3))


def test_the_rank_of_a_class_is_floored_in_float32():
    # 0.7 * 10 is 7.000000000000001 in double and 7 in float32; 0.29 * 100 is 28.999999999999996 and 29
    for n, alpha in ((10, 0.7), (100, 0.29), (10, 0.3), (1000, 0.001)):
        confidence = torch.linspace(0.1, 0.9, n).reshape(1, 1, n)
        weights = label_weights(confidence, torch.zeros(1, 1, n, dtype=torch.long), alpha, per_class=True)
        assert (weights == 1).sum() == np.floor(np.float32(n) * np.float32(alpha))
        assert (label_weights(confidence, torch.zeros(1, 1, n, dtype=torch.long), alpha) == 1).sum() == int(alpha * n)


@given(maps, label_maps, st.floats(0.01, 1))
def test_weights_agree_with_eq_3_and_with_the_authors_rule(confidence, labels, alpha):
    f, y = torch.from_numpy(confidence), torch.from_numpy(labels)
    per_class = numpy_paper.label_weights_per_class(confidence, labels, alpha)
    np.testing.assert_allclose(label_weights(f, y, alpha, per_class=True), per_class, rtol=1e-6)
    known = confidence[labels != 255]
    if known.size and np.sort(known)[::-1][max(1, int(alpha * known.size)) - 1] > 0:
        np.testing.assert_allclose(
            label_weights(f, y, alpha), numpy_paper.label_weights(confidence, labels, alpha), rtol=1e-6
        )


@given(maps, label_maps, st.floats(0, 1), settings)
def test_weights_lie_between_zero_and_one_and_are_zero_where_ignored(confidence, labels, alpha, how):
    weights = label_weights(torch.from_numpy(confidence), torch.from_numpy(labels), alpha, *how).numpy()
    assert ((weights >= 0) & (weights <= 1)).all()
    assert (weights[labels == 255] == 0).all()


@given(maps, label_maps, settings)
def test_alpha_one_gives_every_labelled_pixel_weight_one(confidence, labels, how):
    weights = label_weights(torch.from_numpy(confidence), torch.from_numpy(labels), 1.0, *how).numpy()
    assert (weights == (labels != 255)).all()


@given(maps.map(lambda f: f / 2 + 0.25), label_maps, st.floats(0.01, 1), st.floats(0.01, 1), settings)
def test_a_larger_alpha_lowers_no_weight(confidence, labels, one, other, how):
    low, high = (
        label_weights(torch.from_numpy(confidence), torch.from_numpy(labels), alpha, *how)
        for alpha in sorted((one, other))
    )
    assert (low <= high).all()


@given(maps, st.floats(0, 1))
def test_entropy_weights_go_from_one_to_the_confidence(confidence, gamma):
    f = torch.from_numpy(confidence)
    assert torch.equal(entropy_weights(f, 0.0), torch.ones_like(f))
    assert torch.equal(entropy_weights(f, 1.0), f)
    np.testing.assert_allclose(entropy_weights(f, gamma), (1 - gamma) + gamma * confidence, rtol=1e-5, atol=1e-6)
