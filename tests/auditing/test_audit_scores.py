"""What is said of a pixel: each map by hand, and codes that order as the numbers do."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cromss.auditing.scores import CODES, as_share, decoded, divergence, encoded, enhanced, joint, look
from cromss.objective.enhancement import Agreement, Trust


def logits(*pixels):
    """Probabilities of every pixel of a line, as logits (1, C, 1, W)."""
    return torch.tensor(pixels).T[None, :, None].log()


def test_a_hand_worked_line():
    # Two classes. s1 says (.8, .2), (.5, .5), (1, 0); s2 says (.6, .4), (.5, .5), (0, 1); labels 0, 1, none.
    seen = look({"s1": logits((0.8, 0.2), (0.5, 0.5), (1.0, 1e-30)), "s2": logits((0.6, 0.4), (0.5, 0.5), (1e-30, 1.0))},
                torch.tensor([[[0, 1, 255]]], dtype=torch.uint8))  # fmt: skip
    np.testing.assert_allclose(decoded(seen.own["s1"])[0, 0], [0.8, 0.5, 0], rtol=2e-3)
    np.testing.assert_allclose(decoded(seen.own["s2"])[0, 0], [0.6, 0.5, 0], rtol=2e-3)
    f = enhanced(seen.own, Agreement())  # eq. 2: .8 (1 + .6) / 2 = .64, .6 (1 + .8) / 2 = .54, .5 (1 + .5) / 2 = .375
    np.testing.assert_allclose(f["s1"][0, 0], [0.64, 0.375, 0], rtol=4e-3)
    np.testing.assert_allclose(f["s2"][0, 0], [0.54, 0.375, 0], rtol=4e-3)
    np.testing.assert_allclose(joint(f)[0, 0], [0.59, 0.375, 0], rtol=4e-3)
    assert seen.best.tolist()[0][0][0] == 0
    assert seen.sure[0, 0].tolist() == [round(0.7 * 254), 127, 127]
    h = -(0.7 * math.log2(0.7) + 0.3 * math.log2(0.3))
    assert seen.entropy[0, 0].tolist() == [round(254 * h), 254, 254]
    # Jensen-Shannon, in bits: H(mean) - mean H. Of two certainties that contradict each other 1, of two equal doubts 0.
    own = sum(-(p * math.log2(p) + (1 - p) * math.log2(1 - p)) for p in (0.8, 0.6)) / 2
    assert seen.disagreement[0, 0].tolist() == [round(254 * (h - own)), 0, 254]


def test_a_lone_modality_has_its_own_confidence_and_nobody_to_disagree_with():
    seen = look({"s2": logits((0.8, 0.2))}, torch.zeros(1, 1, 1, dtype=torch.uint8))
    assert seen.disagreement is None
    np.testing.assert_allclose(joint(enhanced(seen.own, Agreement())), 0.8, rtol=2e-3)


def test_the_runs_own_enhancement_is_used():
    own = {"s1": encoded(np.full((1, 1, 1), 0.5)), "s2": encoded(np.full((1, 1, 1), 0.25))}
    deaf = enhanced(own, Trust(trust={"s1": 0.0, "s2": 0.0}))
    assert (deaf["s1"].item(), deaf["s2"].item()) == (0.5, 0.25)


def test_the_divergence_of_three_lies_between_agreement_and_contradiction():
    certain = [logits(row) for row in ((1.0, 1e-30, 1e-30), (1e-30, 1.0, 1e-30), (1e-30, 1e-30, 1.0))]
    three = {name: one.log_softmax(1) for name, one in zip("abc", certain, strict=True)}
    mean = torch.stack(list(three.values())).logsumexp(0) - math.log(3)
    assert divergence(three, mean).item() == pytest.approx(1)
    same = dict.fromkeys("abc", three["a"])
    assert divergence(same, three["a"]).item() == pytest.approx(0, abs=1e-6)


def test_answers_that_are_no_numbers_are_refused_by_name():
    with pytest.raises(ValueError, match="run/segmenter answers with numbers that are not finite"):
        look({"s2": torch.full((1, 2, 1, 1), torch.nan)}, torch.zeros(1, 1, 1, dtype=torch.uint8), "run/segmenter")


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=20))
def test_codes_order_as_the_numbers_do_and_stand_for_them(values):
    values = np.array(values, np.float32)
    codes = encoded(values)
    assert codes.max() < CODES
    assert (np.diff(codes[np.argsort(values)].astype(int)) >= 0).all()
    back, normal = decoded(codes), values > 1e-37
    assert (back <= values).all()
    np.testing.assert_allclose(back[normal], values[normal], rtol=2**-9)
    assert (encoded(back) == codes).all()


def test_one_and_nothing_keep_their_place():
    assert encoded(np.array([0.0, 1.0])).tolist() == [0, CODES - 1]
    assert decoded(np.array([CODES - 1], np.uint16))[0] == 1
    assert as_share(np.array([0.0, 0.5, 1.0, 1.1])).tolist() == [0, 127, 254, 254]
