import numpy as np
import numpy_paper
import pytest
import torch
from torch.nn import functional

import cromss.networks  # noqa: F401  (makes segmentation_models_pytorch importable)
from cromss.objective.losses import as_targets, consistency, weighted_cross_entropy, weighted_dice


def weights_like(labels, seed=1):
    return torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_unit_weights_reduce_to_cross_entropy(batch):
    logits, labels, _ = batch()
    ours = weighted_cross_entropy(logits["s1"], labels, torch.ones(labels.shape))
    torch.testing.assert_close(ours, functional.cross_entropy(logits["s1"], labels, ignore_index=255))


def test_unit_weights_reduce_to_the_librarys_dice(batch):
    from segmentation_models_pytorch.losses import DiceLoss

    logits, labels, _ = batch()
    labels[labels == 4] = 0  # class 4 absent: 0 in both, and in the mean over five
    ours = weighted_dice(logits["s1"], labels, torch.ones(labels.shape))
    torch.testing.assert_close(ours, DiceLoss("multiclass", ignore_index=255)(logits["s1"], labels))


def test_weighted_losses_agree_with_their_formulas(batch):
    logits, labels, _ = batch()
    labels[labels == 2] = 3
    weights = weights_like(labels)
    arrays = logits["s1"].numpy(), labels.numpy(), weights.numpy()
    assert weighted_cross_entropy(logits["s1"], labels, weights).item() == pytest.approx(
        numpy_paper.cross_entropy(*arrays)
    )
    assert weighted_dice(logits["s1"], labels, weights).item() == pytest.approx(numpy_paper.dice(*arrays))


def test_dice_by_hand():
    # p(class 0) = 1/2 on three pixels labelled 0, 0, 1 with weights 1, 1/2, 1/2; class 2 has no pixel
    logits = torch.log(torch.tensor([0.5, 0.25, 0.25])).reshape(1, 3, 1, 1).expand(1, 3, 1, 3)
    loss = weighted_dice(logits, torch.tensor([[[0, 0, 1]]]), torch.tensor([[[1.0, 0.5, 0.5]]]))
    class0 = 1 - 2 * (1.5 * 0.5) / (2 * 0.5 + 1.5)
    class1 = 1 - 2 * (0.5 * 0.25) / (2 * 0.25 + 0.5)
    assert loss.item() == pytest.approx((class0 + class1 + 0) / 3)


def test_cross_entropy_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.8, 0.2]])).T.reshape(1, 2, 1, 2)
    loss = weighted_cross_entropy(logits, torch.tensor([[[0, 1]]]), torch.tensor([[[1.0, 0.25]]]))
    assert loss.item() == pytest.approx((np.log(2) + 0.25 * np.log(5)) / 1.25)


def test_a_present_class_of_weight_zero_costs_a_whole_dice_an_absent_one_none():
    logits = torch.zeros(1, 2, 1, 2)
    weights = torch.tensor([[[1.0, 0.0]]])
    present = weighted_dice(logits, torch.tensor([[[0, 1]]]), weights)
    absent = weighted_dice(logits, torch.tensor([[[0, 255]]]), weights)
    assert (present - absent).item() == pytest.approx(1 / 2)


@pytest.mark.parametrize("loss", [weighted_cross_entropy, weighted_dice])
def test_one_hot_targets_are_class_numbers(loss, batch):
    logits, labels, _ = batch()
    weights = weights_like(labels)
    torch.testing.assert_close(loss(logits["s1"], as_targets(labels, 5), weights), loss(logits["s1"], labels, weights))
    as_zero = loss(logits["s1"], labels.masked_fill(labels == 255, -100), weights, ignore_index=-100)
    torch.testing.assert_close(as_zero, loss(logits["s1"], labels, weights))


@pytest.mark.parametrize("loss", [weighted_cross_entropy, weighted_dice])
def test_ignored_pixels_count_nowhere_whatever_their_logits_and_weights(loss, batch):
    logits, labels, _ = batch()
    weights, z = weights_like(labels), logits["s1"].requires_grad_()
    value = loss(z, labels, weights)
    value.backward()
    ignored = labels == 255
    assert (z.grad.movedim(1, -1)[ignored] == 0).all()
    changed = torch.where(ignored[:, None], 7 * logits["s2"], z.detach())
    torch.testing.assert_close(loss(changed, labels, weights.masked_fill(ignored, 9.0)), value.detach())


def test_consistency_agrees_with_torchs_own_divergences(batch):
    logits, labels, _ = batch()
    student, teacher, weights = logits["s1"], logits["s2"], weights_like(labels)
    p, log_q = teacher.softmax(1), student.log_softmax(1)
    per_pixel = {
        "kl": functional.kl_div(log_q, p, reduction="none").sum(1),
        "cross_entropy": functional.cross_entropy(student, p, reduction="none"),
        "mse": functional.mse_loss(log_q.exp(), p, reduction="none").sum(1),
    }
    for kind, distance in per_pixel.items():
        expected = (weights * distance).sum() / weights.sum()
        torch.testing.assert_close(consistency(student, teacher, weights, kind), expected)
    assert consistency(student, teacher, weights).item() == pytest.approx(
        numpy_paper.kl(student.numpy(), teacher.numpy(), weights.numpy())
    )


def test_consistency_is_zero_between_equals_and_trains_the_student_alone(batch):
    logits, labels, _ = batch()
    student, teacher = logits["s1"].requires_grad_(), logits["s2"].requires_grad_()
    assert consistency(student, student, weights_like(labels)).item() == pytest.approx(0)
    consistency(student, teacher, weights_like(labels)).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_kl_and_cross_entropy_pull_alike(batch):
    logits, labels, _ = batch()
    gradients = []
    for kind in ("kl", "cross_entropy"):
        student = logits["s1"].clone().requires_grad_()
        consistency(student, logits["s2"], weights_like(labels), kind).backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(batch, dtype):
    logits, labels, _ = batch()
    half, other, weights = logits["s1"].to(dtype), logits["s2"].to(dtype), weights_like(labels).float()
    for loss in (weighted_cross_entropy, weighted_dice):
        assert torch.equal(loss(half, labels, weights), loss(half.float(), labels, weights))
    assert torch.equal(consistency(half, other, weights), consistency(half.float(), other.float(), weights))


def test_no_weight_at_all_is_no_loss_and_no_gradient(batch):
    logits, labels, _ = batch()
    z, nothing = logits["s1"].requires_grad_(), torch.zeros(labels.shape)
    ignored = torch.full_like(labels, 255)
    total = weighted_cross_entropy(z, labels, nothing) + consistency(z, logits["s2"], nothing)
    total = total + weighted_dice(z, ignored, nothing) + weighted_cross_entropy(z, ignored, nothing + 1)
    total.backward()
    assert total.item() == 0
    assert (z.grad == 0).all()


def test_an_unknown_consistency_names_the_known_ones(batch):
    logits, labels, _ = batch()
    with pytest.raises((ValueError, TypeError), match="kl"):
        consistency(logits["s1"], logits["s2"], weights_like(labels), "hinge")
