import jaxtyping
import numpy_paper
import pytest
import torch

from cromss.objective.confidence import enhance, entropy_confidence, gini_confidence, label_confidence
from cromss.objective.crossmodal import CrossModalObjective, ObjectiveConfig
from cromss.objective.losses import as_targets
from cromss.objective.thresholds import Histogram
from cromss.objective.weights import label_weights
from cromss.settings import validate


def objective(**settings) -> CrossModalObjective:
    return CrossModalObjective(validate(ObjectiveConfig, settings))


def trainable(logits):
    return {modality: z.clone().requires_grad_() for modality, z in logits.items()}


@pytest.mark.parametrize("per_class", [False, True])
def test_the_loss_is_section_3_of_the_paper(batch, per_class):
    logits, labels, valid = batch()
    weights = numpy_paper.label_weights_per_class if per_class else numpy_paper.label_weights
    expected = numpy_paper.objective(
        logits["s1"].numpy(), logits["s2"].numpy(), labels.numpy(), 0.6, 0.7, valid.numpy(), weights
    )
    parts = objective(per_class=per_class)(logits, labels, alpha=0.6, gamma=0.7, valid=valid)
    assert parts.loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_parts_make_the_loss(batch):
    logits, labels, valid = batch()
    parts = objective(consistency={"kind": "mse", "weight": 3.0})(logits, labels, alpha=0.5, gamma=1.0, valid=valid)
    segmentation = sum(parts.cross_entropy[m] + parts.dice[m] for m in ("s1", "s2"))
    torch.testing.assert_close(parts.segmentation, segmentation)
    torch.testing.assert_close(parts.loss, segmentation + 3 * parts.consistency)
    maps = (*parts.confidence.values(), *parts.label_weights.values(), *parts.entropy_weights.values())
    assert all(m.shape == labels.shape and not m.requires_grad for m in maps)
    known = labels.masked_fill(~valid, 255)
    own = {m: label_confidence(z, known) for m, z in logits.items()}
    torch.testing.assert_close(parts.confidence["s1"], enhance(own["s1"], own["s2"]))
    torch.testing.assert_close(
        parts.label_weights["s2"], label_weights(parts.confidence["s2"], known, 0.5, threshold=Histogram())
    )


def test_no_gradient_flows_through_confidence_weights_or_teacher(batch):
    """The gradient of s1 is that of its own losses with weights and teacher held fixed as numbers."""
    from cromss.objective.losses import consistency, weighted_cross_entropy, weighted_dice

    logits, labels, _ = batch()
    z = trainable(logits)
    parts = objective()(z, labels, alpha=0.5, gamma=1.0)
    parts.loss.backward()
    alone = logits["s1"].clone().requires_grad_()
    weights, trust = parts.label_weights["s1"], parts.entropy_weights["s2"]
    fixed = weighted_cross_entropy(alone, labels, weights) + weighted_dice(alone, labels, weights)
    (fixed + consistency(alone, logits["s2"], trust)).backward()
    torch.testing.assert_close(z["s1"].grad, alone.grad)


def test_a_lone_modality_keeps_its_own_confidence_and_has_no_consistency(batch):
    logits, labels, _ = batch()
    parts = objective()({"s2": logits["s2"]}, labels, alpha=0.5, gamma=1.0)
    assert parts.consistency == 0
    torch.testing.assert_close(parts.confidence["s2"], label_confidence(logits["s2"], labels))
    torch.testing.assert_close(parts.loss, parts.cross_entropy["s2"] + parts.dice["s2"])


def test_a_third_modality_that_repeats_the_second_changes_nothing_for_the_first(batch):
    logits, labels, _ = batch()
    a, b = logits["s1"], logits["s2"]
    two = objective()({"a": a, "b": b}, labels, alpha=0.5, gamma=0.0)
    three = objective()({"a": a, "b": b, "c": b}, labels, alpha=0.5, gamma=0.0)
    torch.testing.assert_close(three.label_weights["a"], two.label_weights["a"])
    torch.testing.assert_close(three.cross_entropy["a"], two.cross_entropy["a"])
    # b and c agree, so each costs half of what b alone costs, as students of a
    torch.testing.assert_close(three.consistency, two.consistency)


def test_without_enhancement_each_modality_trusts_itself(batch):
    logits, labels, _ = batch()
    parts = objective(enhancement={"kind": "none"})(logits, labels, alpha=0.5, gamma=1.0)
    for modality, z in logits.items():
        torch.testing.assert_close(parts.confidence[modality], label_confidence(z, labels))
        torch.testing.assert_close(parts.entropy_weights[modality], entropy_confidence(z))
    gini = objective(enhancement={"kind": "none"}, confidence="gini")(logits, labels, alpha=0.5, gamma=1.0)
    torch.testing.assert_close(gini.entropy_weights["s1"], gini_confidence(logits["s1"]))


def test_invalid_pixels_leave_everything(batch):
    logits, labels, valid = batch()
    z = trainable(logits)
    parts = objective()(z, labels, alpha=0.5, gamma=1.0, valid=valid)
    parts.loss.backward()
    for modality in logits:
        assert (z[modality].grad.movedim(1, -1)[~valid] == 0).all()
        assert (z[modality].grad.movedim(1, -1)[valid] != 0).any(-1).all()
        assert (parts.label_weights[modality][~valid] == 0).all()
        assert (parts.entropy_weights[modality][~valid] == 0).all()
    spoiled = {m: torch.where(valid[:, None], v, float("nan")) for m, v in logits.items()}
    torch.testing.assert_close(
        objective()(spoiled, labels, alpha=0.5, gamma=1.0, valid=valid).loss, parts.loss.detach()
    )


def test_ignored_pixels_keep_only_their_consistency(batch):
    logits, labels, _ = batch()
    one, other = trainable(logits), trainable(logits)
    objective()(one, labels, alpha=0.5, gamma=1.0).loss.backward()
    objective()(other, labels, alpha=0.5, gamma=1.0).consistency.backward()
    ignored = labels == 255
    for modality in logits:
        torch.testing.assert_close(
            one[modality].grad.movedim(1, -1)[ignored], other[modality].grad.movedim(1, -1)[ignored]
        )
        assert (other[modality].grad.movedim(1, -1)[ignored] != 0).any(-1).all()


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("scope", ["batch", "image", "global"])
def test_a_batch_without_any_label_costs_its_consistency_and_one_without_data_nothing(batch, scope, per_class):
    logits, labels, valid = batch()
    z, nowhere = trainable(logits), torch.full_like(labels, 255)
    unlabelled = objective(scope=scope, per_class=per_class)(z, nowhere, alpha=0.5, gamma=1.0)
    assert unlabelled.segmentation == 0
    assert unlabelled.consistency > 0
    nothing = objective(scope=scope, per_class=per_class)(z, labels, alpha=0.5, gamma=1.0, valid=valid & False)
    nothing.loss.backward()
    assert nothing.loss == 0
    assert all((v.grad == 0).all() for v in z.values())


@pytest.mark.parametrize("kind", ["kl", "cross_entropy", "mse"])
def test_saturated_logits_stay_finite(batch, kind):
    logits, labels, valid = batch()
    z = trainable({m: (v.sign() * 1e4).float() for m, v in logits.items()})
    parts = objective(consistency={"kind": kind})(z, labels, alpha=0.5, gamma=1.0, valid=valid)
    parts.loss.backward()
    assert parts.loss.isfinite()
    assert all(v.grad.isfinite().all() for v in z.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_under_autocast_are_judged_in_float32(batch, dtype):
    logits, labels, valid = batch()
    z = trainable({m: v.to(dtype) for m, v in logits.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = objective()(z, labels.byte(), alpha=0.5, gamma=1.0, valid=valid)
    parts.loss.backward()
    full = objective()({m: v.detach().float() for m, v in z.items()}, labels, alpha=0.5, gamma=1.0, valid=valid)
    assert parts.loss.dtype == torch.float32
    assert torch.equal(parts.loss, full.loss)
    assert all(v.grad.isfinite().all() for v in z.values())


def test_smoothed_targets_enter_the_losses_and_not_the_selection(batch):
    logits, labels, valid = batch()
    plain = objective()(logits, labels, alpha=0.5, gamma=1.0, valid=valid)
    same = objective()(logits, labels, alpha=0.5, gamma=1.0, valid=valid, targets=as_targets(labels, 5))
    torch.testing.assert_close(same.loss, plain.loss)
    targets = 0.8 * as_targets(labels, 5) + 0.04 * (labels != 255)[:, None]
    smooth = objective()(logits, labels, alpha=0.5, gamma=1.0, valid=valid, targets=targets)
    spoiled = torch.where(valid[:, None], targets, float("nan"))
    assert torch.equal(
        objective()(logits, labels, alpha=0.5, gamma=1.0, valid=valid, targets=spoiled).loss, smooth.loss
    )
    assert smooth.segmentation != plain.segmentation
    assert torch.equal(smooth.label_weights["s1"], plain.label_weights["s1"])
    assert torch.equal(smooth.consistency, plain.consistency)


def test_a_wrong_shape_is_refused(batch):
    logits, labels, _ = batch()
    with pytest.raises(jaxtyping.TypeCheckError):
        label_confidence(logits["s1"], labels[:, 1:])
