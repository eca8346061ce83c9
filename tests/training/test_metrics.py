"""Scores from one confusion matrix."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cromss.landcover import IGNORE
from cromss.training.metrics import Confusion, auroc, average_precision, scores


def test_a_hand_worked_matrix():
    # rows true: 4 water (3 right, 1 taken for trees), 2 trees (1, 1), no third class anywhere
    found = scores(np.array([[3, 1, 0], [1, 1, 0], [0, 0, 0]]))
    assert found.oa == pytest.approx(4 / 6)
    assert found.aa == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found.iou[:2] == (pytest.approx(3 / 5), pytest.approx(1 / 3))
    assert np.isnan(found.iou[2])
    assert found.miou == pytest.approx((3 / 5 + 1 / 3) / 2)


def test_a_class_predicted_but_never_true_counts_as_zero_iou_and_has_no_recall():
    found = scores(np.array([[3, 1], [0, 0]]))
    assert found.iou == (0.75, 0.0)
    assert found.aa == 0.75


def test_confusion_leaves_ignored_pixels_out_and_adds_up_over_batches():
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 1] = 1  # predicts class 1 everywhere
    labels = torch.tensor([[[0, 1], [2, IGNORE]]], dtype=torch.uint8)
    confusion = Confusion(3)
    confusion.update(logits, labels)
    confusion.update(logits, labels)
    assert confusion.counts.tolist() == [[0, 2, 0], [0, 2, 0], [0, 2, 0]]


def test_golden_metrics_of_the_authors_code(shared):
    golden = np.load(shared / "golden" / "m01_metrics_8cls_class7_absent.npz")
    confusion = Confusion(8)
    confusion.update(torch.from_numpy(golden["logits"]), torch.from_numpy(golden["labels"]))
    found = scores(confusion.counts)
    assert found.oa == pytest.approx(float(golden["code_oa"]), rel=1e-5)
    tp, fp, fn = (golden[f"code_{name}"][0] for name in ("tp", "fp", "fn"))
    present = (tp + fp + fn) > 0
    assert np.array(found.iou)[present] == pytest.approx((tp / np.maximum(tp + fp + fn, 1))[present], rel=1e-5)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auroc_is_the_share_of_pairs_in_order(pairs):
    score, positive = np.array([s for s, _ in pairs], float), np.array([p for _, p in pairs])
    right, wrong = score[positive], score[~positive]
    found = auroc(score, positive)
    if not right.size or not wrong.size:
        assert np.isnan(found)
    else:
        ahead = (right[:, None] > wrong).sum() + 0.5 * (right[:, None] == wrong).sum()
        assert found == pytest.approx(ahead / (right.size * wrong.size))


def test_average_precision_of_a_hand_worked_list():
    # .9+ .8- .7+ .7- .1+: recall 1/3 at precision 1, 2/3 at 2/4 (the two that tie come together), 1 at 3/5
    score, positive = np.array([0.7, 0.9, 0.1, 0.8, 0.7]), np.array([True, True, True, False, False])
    assert average_precision(score, positive) == pytest.approx((1 + 2 / 4 + 3 / 5) / 3)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_average_precision_sums_precision_over_the_gains_in_recall(pairs):
    score, positive = np.array([s for s, _ in pairs], float), np.array([p for _, p in pairs])
    found = average_precision(score, positive)
    if not positive.any():
        assert np.isnan(found)
        return
    total, recall = 0.0, 0.0
    for threshold in sorted(set(score), reverse=True):
        taken = positive[score >= threshold]
        total += (taken.sum() / positive.sum() - recall) * taken.mean()
        recall = taken.sum() / positive.sum()
    assert found == pytest.approx(total)
    assert average_precision(np.zeros(len(score)), positive) == pytest.approx(positive.mean())
