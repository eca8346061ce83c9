"""Thresholds and scores from counts, held against the objective's weights and the metrics that see every pixel."""

import numpy as np
import pytest
import torch
from audited import rows
from hypothesis import given
from hypothesis import strategies as st

from cromss.auditing.scores import decoded, encoded
from cromss.auditing.tally import (
    CODES,
    Classes,
    Score,
    auroc,
    average_precision,
    by_class,
    pairs,
    thresholds,
    truth,
    worst_pair,
)
from cromss.objective.weights import label_weights
from cromss.training import metrics

values = st.lists(st.sampled_from([0.0, 0.001, 0.1, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=40)


def drawn(size, seed=0, classes=3):
    draw = np.random.default_rng(seed)
    return draw.integers(0, classes, size), draw.random(size, np.float32) ** 4


def test_the_worst_fifth_of_a_hand_worked_line_is_flagged():
    seen = rows([0, 0, 1, 1, 255, 2], [0.9, 0.1, 0.8, 0.7, 0.0, 0.6])
    limits = thresholds(
        by_class(seen, 9), 0.2, 0.5, per_class=False
    )  # of five labels one; the second best of .9 .8 is w
    assert limits.flagged(seen)[0, 0].tolist() == [False, True, False, False, False, False]
    np.testing.assert_allclose(limits.weights(seen)[0, 0], [1, 0.125, 1, 0.875, 0, 0.75], rtol=4e-3)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.999])
def test_never_more_than_the_share_and_none_that_is_trusted_more_than_one_left_out(share):
    label, confidence = drawn(4000)
    seen = rows(label, confidence)
    flagged = thresholds(by_class(seen, 9), share, 0.5, False).flagged(seen)[0, 0]
    assert share - 0.01 < flagged.mean() <= share
    assert confidence[flagged].max() <= confidence[~flagged].min()


def test_where_all_labels_are_trusted_alike_none_is_flagged():
    seen = rows([0] * 50, [0.7] * 50)
    limits = thresholds(by_class(seen, 9), 0.05, 0.5, False)
    assert not limits.flagged(seen).any()
    assert (limits.weights(seen) == 1).all()


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_the_weights_are_those_of_the_objective_over_the_whole_set(alpha, per_class):
    label, confidence = drawn(3000)
    label[::17] = 255
    seen = rows(label, confidence)
    found = thresholds(by_class(seen, 9), 0.05, alpha, per_class).weights(seen)
    wanted = label_weights(torch.from_numpy(seen.joint), torch.from_numpy(seen.label), alpha, per_class=per_class)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=2.1e-3, atol=1e-6)


@given(values, values)
def test_areas_from_counts_are_those_of_all_pixels(right, wrong):
    codes = [encoded(np.array(one)) for one in (right, wrong)]
    counts = [np.bincount(one, minlength=CODES) for one in codes]
    is_wrong = np.repeat([False, True], [len(right), len(wrong)])
    suspicion = 1 - decoded(np.concatenate(codes)).astype(np.float64)
    assert auroc(*counts) == pytest.approx(metrics.auroc(suspicion, is_wrong))
    assert average_precision(*counts) == pytest.approx(metrics.average_precision(suspicion, is_wrong))


def test_without_a_wrong_or_a_right_label_there_is_no_area():
    some, none = np.ones(CODES, int), np.zeros(CODES, int)
    assert auroc(some, none) is auroc(none, some) is average_precision(some, none) is None


def test_against_the_truth_by_hand():
    # The third and fourth are wrong, the sixth has no truth. Flagged: the two of least confidence, one of them wrong.
    seen = rows(
        [0, 0, 1, 1, 2, 2], [0.9, 0.2, 0.1, 0.6, 0.8, 0.7], suggested=[0, 3, 0, 1, 2, 2], clean=[0, 0, 0, 2, 2, 255]
    )
    limits = thresholds(by_class(seen, 9), 0.34, 0.5, False)
    score, verdict = Score(), truth(seen)
    score.count(seen, verdict)
    score.suggestions(seen, verdict, limits.flagged(seen), seen.best)
    found = score.result(limits.cut)
    assert (found["pixels"], found["rate"], found["flagged"]) == (5, 0.4, 2)
    assert (found["precision"], found["recall"]) == (0.5, 0.5)
    assert found["auroc"]["joint"] == pytest.approx(5 / 6)  # .1 is below .9 .2 .8, .6 below .9 and .8
    assert found["suggestions_that_differ"] == {"pixels": 2, "given_right": 0.5, "suggestion_right": 0.5}
    assert found["suggestions_on_flagged"] == {"pixels": 2, "given_right": 0.5, "suggestion_right": 0.5}


def test_classes_and_pairs_by_hand():
    seen = rows([0, 0, 0, 1, 255], [0.2, 0.4, 0.6, 1.0, 0.0])
    flagged = np.array([[[True, True, False, False, False]]])
    suggested = np.array([[[4, 4, 0, 255, 3]]], np.uint8)
    table = Classes(9)
    table.add(seen, flagged, seen.joint, suggested)
    names = tuple("abcdefghi")
    first, second, third = table.rows(names)[:3]
    assert (first["pixels"], first["flagged"], first["suggested_otherwise"], first["most_often"]) == (3, 2, 2, "e")
    assert first["mean_confidence"] == pytest.approx(0.4)
    assert (second["pixels"], second["share_flagged"], second["most_often"]) == (1, 0, "")
    assert (third["pixels"], third["mean_weight"]) == (0, None)
    assert table.pairs[0].tolist() == [1, 0, 0, 0, 2, 0, 0, 0, 0, 0]
    assert table.pairs[1, 9] == 1
    assert table.pairs.sum() == 4
    assert worst_pair(pairs(seen.label, suggested, flagged, 9), names) == ("a → e", 2)
    assert worst_pair(np.diag([3] * 9 + [0])[:9], names) == ("", 0)
