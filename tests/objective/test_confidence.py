import math

import numpy_paper
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cromss.objective.confidence import enhance, enhance_all, entropy_confidence, gini_confidence, label_confidence

shares = st.floats(0, 1, width=32, allow_subnormal=False)


def test_label_confidence_is_the_probability_of_the_label():
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])).T.reshape(1, 3, 1, 2)
    torch.testing.assert_close(label_confidence(logits, torch.tensor([[[0, 1]]])), torch.tensor([[[0.7, 0.1]]]))


def test_label_confidence_is_zero_where_ignored_whatever_the_ignored_number():
    logits = torch.zeros(1, 4, 1, 3)
    assert label_confidence(logits, torch.tensor([[[255, 0, 1]]])).tolist() == [[[0, 0.25, 0.25]]]
    assert label_confidence(logits, torch.tensor([[[255, 0, 1]]]) % 254, 0).tolist() == [[[0.25, 0, 0.25]]]
    assert label_confidence(logits, torch.tensor([[[-1, 0, 1]]]), -1).tolist() == [[[0, 0.25, 0.25]]]


def test_label_confidence_agrees_with_its_formula(batch):
    logits, labels, _ = batch()
    expected = numpy_paper.label_confidence(logits["s1"].numpy(), labels.numpy())
    torch.testing.assert_close(label_confidence(logits["s1"], labels), torch.from_numpy(expected))
    torch.testing.assert_close(label_confidence(logits["s1"], labels.byte()), torch.from_numpy(expected))


def test_entropy_confidence_agrees_with_eq_1(batch):
    logits, _, _ = batch()
    expected = numpy_paper.entropy_confidence(logits["s2"].numpy())
    torch.testing.assert_close(entropy_confidence(logits["s2"]), torch.from_numpy(expected))


def test_entropy_confidence_is_zero_for_a_uniform_and_one_for_a_certain_prediction():
    logits = torch.zeros(1, 9, 1, 2)
    logits[0, 3, 0, 1] = 1e4
    torch.testing.assert_close(entropy_confidence(logits), torch.tensor([[[0.0, 1.0]]]), atol=1e-6, rtol=0)


def test_entropy_confidence_of_a_fair_coin_among_four_classes_is_one_half():
    logits = torch.log(torch.tensor([0.5, 0.5, 1e-30, 1e-30])).reshape(1, 4, 1, 1)
    assert entropy_confidence(logits).item() == pytest.approx(1 - math.log(2) / math.log(4))


def test_gini_confidence_is_the_sum_of_squares():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2])).reshape(1, 3, 1, 1)
    assert gini_confidence(logits).item() == pytest.approx(0.25 + 0.09 + 0.04)


@pytest.mark.parametrize("confidence", [entropy_confidence, gini_confidence])
def test_saturated_half_precision_logits_give_full_confidence(confidence):
    logits = torch.full((1, 9, 2, 2), -1e4, dtype=torch.float16)
    logits[:, 2] = 1e4
    assert confidence(logits).dtype == torch.float32
    torch.testing.assert_close(confidence(logits), torch.ones(1, 2, 2))


def test_no_confidence_carries_a_gradient(batch):
    logits, labels, _ = batch()
    z = logits["s1"].requires_grad_()
    assert not any(f.requires_grad for f in (label_confidence(z, labels), entropy_confidence(z), gini_confidence(z)))


@given(shares, shares)
def test_enhancement_never_exceeds_the_own_confidence_and_halves_it_at_most(own, other):
    f = enhance(torch.full((1, 1, 1), own), torch.full((1, 1, 1), other)).item()
    assert own / 2 <= f <= own


def test_enhancement_by_hand():
    own, other = torch.tensor([[[0.8, 0.5, 1.0]]]), torch.tensor([[[0.5, 1.0, 0.0]]])
    torch.testing.assert_close(enhance(own, other), torch.tensor([[[0.6, 0.5, 0.5]]]))


def test_enhancement_of_two_is_eq_2_and_of_one_is_none_and_of_three_takes_the_mean_of_the_others():
    a, b, c = (torch.full((1, 1, 1), share) for share in (0.2, 0.6, 1.0))
    assert enhance_all({"a": a}) == {"a": a}
    assert enhance_all({"a": a, "b": b}) == {"a": enhance(a, b), "b": enhance(b, a)}
    assert enhance_all({"a": a, "b": b, "c": c})["a"].item() == pytest.approx(0.2 * (1 + 0.8) / 2)
