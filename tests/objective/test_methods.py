import pytest
import torch

from cromss.objective.crossmodal import CrossModalObjective, ObjectiveConfig
from cromss.objective.losses import consistency, weighted_cross_entropy, weighted_dice
from cromss.objective.methods import Oracle, Plain


def test_no_selection_gives_every_label_and_every_teacher_weight_one(batch):
    logits, labels, valid = batch()
    parts = CrossModalObjective(ObjectiveConfig(method=Plain()))(logits, labels, alpha=0.1, gamma=1.0, valid=valid)
    for modality in logits:
        assert torch.equal(parts.label_weights[modality], ((labels != 255) & valid).double())
        assert torch.equal(parts.entropy_weights[modality], valid.double())


def test_no_selection_is_cromss_before_the_ramp_begins(batch):
    logits, labels, valid = batch()
    none = CrossModalObjective(ObjectiveConfig(method=Plain()))(logits, labels, alpha=0.1, gamma=1.0, valid=valid)
    cromss = CrossModalObjective(ObjectiveConfig())(logits, labels, alpha=1.0, gamma=0.0, valid=valid)
    torch.testing.assert_close(none.loss, cromss.loss, rtol=1e-6, atol=0)


def test_the_oracle_learns_exactly_the_right_labels(batch):
    logits, labels, _ = batch()
    clean = labels.roll(1, dims=2)
    right = ((labels == clean) & (labels != 255)).double()
    assert 0 < right.sum() < right.numel()
    parts = CrossModalObjective(ObjectiveConfig(method=Oracle()))(logits, labels, alpha=0.5, gamma=1.0, clean=clean)
    assert torch.equal(parts.label_weights["s1"], right)
    expected = sum(weighted_cross_entropy(z, labels, right) + weighted_dice(z, labels, right) for z in logits.values())
    a, b = logits.values()
    ones = torch.ones(labels.shape)
    torch.testing.assert_close(parts.loss, expected + consistency(a, b, ones) + consistency(b, a, ones))


def test_the_oracle_without_clean_labels_says_what_to_do(batch):
    logits, labels, _ = batch()
    with pytest.raises(ValueError, match=r"method\.kind=oracle: needs clean labels.*cromss or plain"):
        CrossModalObjective(ObjectiveConfig(method=Oracle()))(logits, labels, alpha=0.5, gamma=1.0)


def test_validation_has_no_weights_and_asks_no_other_worker():
    config = ObjectiveConfig(scope="global", per_class=True).unweighted()
    assert config == ObjectiveConfig(method=Plain(), scope="batch", per_class=True)
