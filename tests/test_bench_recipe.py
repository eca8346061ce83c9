"""The authors' recipe, stated plainly, is the oracle of our objective: same loss, same gradients."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from cromss.benchmarks.recipe import recipe_loss
from cromss.objective.crossmodal import CrossModalObjective, ObjectiveConfig
from cromss.objective.fused import FusedObjective

CLASSES = 9
# Relative; gradients: of the largest. Both sides compute in float32, and a histogram's threshold is up to 2^-17 too low.
TOLERANCE = {"exact": 1e-5, "histogram": 1e-5}


@pytest.fixture
def scene():
    """Logits that span certain and uncertain pixels; class 3 is absent, class 5 has a single pixel."""
    draw = torch.Generator().manual_seed(0)
    logits = {name: 4 * torch.randn(2, CLASSES, 24, 24, generator=draw) for name in ("s1", "s2")}
    labels = torch.randint(CLASSES, (2, 24, 24), generator=draw, dtype=torch.uint8)
    labels[(labels == 3) | (labels == 5)] = 7
    labels[1, 2, 3] = 5
    return logits, labels


def loss_and_gradients(objective, logits):
    leaves = {name: z.clone().requires_grad_() for name, z in logits.items()}
    loss = objective(leaves)
    loss.backward()
    return loss.detach(), {name: z.grad for name, z in leaves.items()}


def the_recipes_maths(form="plain", **settings):
    config = ObjectiveConfig(per_class=True, consistency={"kind": "cross_entropy"}, **settings)
    return CrossModalObjective(config) if form == "plain" else FusedObjective(config, compiled=False)


@pytest.mark.parametrize("confidence", ["entropy", "gini"])
@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.003, 0.5, 0.97, 1.0])
@pytest.mark.parametrize(
    ("threshold", "form"), [("exact", "plain"), ("histogram", "plain"), ("exact", "fused"), ("histogram", "fused")]
)
def test_our_objective_is_the_authors_recipe(scene, threshold, form, alpha, gamma, confidence):
    logits, labels = scene
    ours = the_recipes_maths(form, threshold={"kind": threshold}, confidence=confidence)
    loss, gradients = loss_and_gradients(lambda z: ours(z, labels, alpha=alpha, gamma=gamma).loss, logits)
    plain, expected = loss_and_gradients(lambda z: recipe_loss(z, labels, alpha, gamma, confidence), logits)
    tolerance = TOLERANCE[threshold]
    torch.testing.assert_close(loss, plain, rtol=tolerance, atol=0)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        assert (gradients[name] - gradient).abs().max() <= tolerance * gradient.abs().max(), name


def test_one_modality_alone_is_learned_by_its_own_confidence(scene):
    (logits, labels) = scene
    single = {"s2": logits["s2"]}
    ours = the_recipes_maths(threshold={"kind": "exact"})(single, labels, alpha=0.5, gamma=1).loss
    torch.testing.assert_close(recipe_loss(single, labels, 0.5, 1.0), ours, rtol=1e-5, atol=0)


def test_with_everything_selected_the_recipe_is_cross_entropy_and_dice_and_agreement():
    """One pixel of class 0 in one image, uniform predictions: by hand."""
    logits = {name: torch.zeros(1, 2, 1, 1) for name in ("s1", "s2")}
    labels = torch.zeros(1, 1, 1, dtype=torch.uint8)
    entropy = float(cross_entropy(logits["s1"], labels.long()))
    dice = (1 - 2 * 0.5 / (0.5 + 1)) / 2  # class 0: overlap 1/2, size 1/2 + 1; class 1 is absent
    agreement = math.log(2)
    # gamma 0: every teacher counts alike
    assert float(recipe_loss(logits, labels, 1.0, 0.0)) == pytest.approx(2 * (entropy + dice + agreement), rel=1e-6)


def test_a_class_of_too_few_pixels_for_its_share_has_no_weight():
    """Class 1 has one pixel: floor(0.5 x 1) = 0, so its logits learn nothing from its label."""
    logits = {name: torch.zeros(1, 2, 1, 3) for name in ("s1", "s2")}
    labels = torch.tensor([[[0, 0, 1]]], dtype=torch.uint8)
    _, gradients = loss_and_gradients(lambda z: recipe_loss(z, labels, 0.5, 0.0), logits)
    assert gradients["s1"][0, :, 0, 2].abs().max() < 1e-7
    assert gradients["s1"][0, :, 0, 0].abs().max() > 0.1
