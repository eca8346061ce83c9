"""The authors' public code and the paper's formulas, as numbers (reference: golden/README.md)."""

import numpy as np
import pytest
import torch

from cromss.objective.confidence import entropy_confidence, label_confidence
from cromss.objective.crossmodal import CrossModalObjective, ObjectiveConfig
from cromss.objective.fused import FusedObjective
from cromss.objective.losses import consistency, weighted_cross_entropy, weighted_dice
from cromss.objective.thresholds import Exact
from cromss.settings import validate

CASES = {"c01_*": "code", "c05_*": "code", "i01_*": "ext", "s01_*": "code"}
PLAIN = ObjectiveConfig().unweighted()


@pytest.fixture(params=CASES)
def case(request, golden):
    numbers = golden(request.param)
    return numbers, CASES[request.param]


def inputs(numbers):
    logits = {str(d): torch.from_numpy(numbers[f"logits{d}"]).double().requires_grad_() for d in (1, 2)}
    targets = torch.from_numpy(numbers["code_y_smooth"]).double() if "code_y_smooth" in numbers else None
    return logits, torch.from_numpy(numbers["labels"]), targets


def run(numbers, config):
    logits, labels, targets = inputs(numbers)
    alpha, gamma = float(numbers["alpha"]), float(numbers["gamma"])
    return logits, CrossModalObjective(config)(logits, labels, alpha=alpha, gamma=gamma, targets=targets)


def scalar(value):
    return pytest.approx(float(value), rel=1e-6)


@pytest.mark.parametrize("kind", ["kl", "cross_entropy", "mse"])
def test_the_authors_rule_equals_their_code(case, kind):
    numbers, source = case
    config = validate(
        ObjectiveConfig, {"per_class": True, "consistency": {"kind": kind}, "threshold": {"kind": "exact"}}
    )
    logits, parts = run(numbers, config)
    short = {"cross_entropy": "ce"}.get(kind, kind)
    for d in ("1", "2"):
        z, labels = logits[d].detach(), torch.from_numpy(numbers["labels"])
        maps = {
            "Fl": label_confidence(z, labels),
            "Fe": entropy_confidence(z),
            "Flp": parts.confidence[d],
            "Wl": parts.label_weights[d],
            "We": parts.entropy_weights[d],
        }
        for name, ours in maps.items():
            np.testing.assert_allclose(ours, numbers[f"{source}_{name}{d}"], rtol=1e-5, atol=1e-7, err_msg=name)
        assert parts.cross_entropy[d].item() == scalar(numbers[f"{source}_ce_w{d}"])
        assert parts.dice[d].item() == scalar(numbers[f"{source}_dice_w{d}"])
        teacher = "2" if d == "1" else "1"
        one_way = consistency(logits[d], logits[teacher], parts.entropy_weights[teacher], kind)
        assert one_way.item() == scalar(numbers[f"{source}_con_{short}_{d}{teacher}"])
    assert parts.segmentation.item() == scalar(numbers[f"{source}_seg"])
    assert parts.consistency.item() == scalar(numbers[f"{source}_con_{short}"])
    assert parts.loss.item() == scalar(numbers[f"{source}_total_{short}"])


@pytest.mark.parametrize("kind", ["kl", "cross_entropy", "mse"])
def test_unweighted_losses_equal_the_plain_ones(case, kind):
    numbers, source = case
    _, parts = run(numbers, validate(ObjectiveConfig, {"method": {"kind": "plain"}, "consistency": {"kind": kind}}))
    labelled = (numbers["labels"] != 255).mean()  # the golden mean divides by all pixels, ours, like torch's, by these
    for d in ("1", "2"):
        assert parts.cross_entropy[d].item() == scalar(numbers[f"{source}_ce_plain{d}"] / labelled)
        assert parts.dice[d].item() == scalar(numbers[f"{source}_dice_plain{d}"])
    short = {"cross_entropy": "ce"}.get(kind, kind)
    assert parts.consistency.item() == scalar(numbers[f"{source}_con_{short}_plain"])


@pytest.mark.parametrize("pattern", ["c01_*", "c05_*"])
def test_gradients_equal_those_of_the_authors_code(golden, pattern):
    numbers = golden(pattern)
    logits, parts = run(numbers, ObjectiveConfig(per_class=True, threshold=Exact()))
    parts.loss.backward()
    for d in ("1", "2"):
        np.testing.assert_allclose(logits[d].grad, numbers[f"code_grad_kl{d}"], rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("pattern", ["c01_*", "c05_*", "i01_*"])
@pytest.mark.parametrize("scope", ["batch", "image"])
def test_one_threshold_equals_the_papers_formulas(golden, pattern, scope):
    numbers = golden(pattern)
    _, parts = run(numbers, ObjectiveConfig(scope=scope, threshold=Exact()))
    for d in ("1", "2"):
        np.testing.assert_allclose(parts.label_weights[d], numbers[f"paper_Wl{d}_{scope}"], rtol=1e-5, atol=1e-7)
        assert parts.cross_entropy[d].item() == scalar(numbers[f"paper_ce_w{d}_{scope}"])
        assert parts.dice[d].item() == scalar(numbers[f"paper_dice_w{d}_{scope}"])
    assert parts.consistency.item() == scalar(numbers["paper_con_kl_teacherW_normw"])
    assert parts.loss.item() == scalar(numbers[f"paper_total_{scope}"])


@pytest.mark.parametrize("pattern", ["c01_*", "c05_*", "i01_*"])
def test_float32_stays_close_to_the_authors_float32(golden, pattern):
    numbers = golden(pattern)
    source = "ext32" if pattern.startswith("i") else "code32"
    logits, labels, _ = inputs(numbers)
    single = {d: z.detach().float() for d, z in logits.items()}
    config = ObjectiveConfig(per_class=True, threshold=Exact())
    parts = CrossModalObjective(config)(single, labels, alpha=float(numbers["alpha"]), gamma=float(numbers["gamma"]))
    assert parts.loss.item() == pytest.approx(float(numbers[f"{source}_total_kl"]), rel=1e-5)
    weights = parts.label_weights["1"]
    assert weighted_cross_entropy(single["1"], labels, weights).item() == pytest.approx(
        float(numbers[f"{source}_ce_w1"]), rel=1e-5
    )
    assert weighted_dice(single["1"], labels, weights).item() == pytest.approx(
        float(numbers[f"{source}_dice_w1"]), rel=1e-5
    )


@pytest.mark.parametrize("pattern", ["c01_*", "c05_*"])
@pytest.mark.parametrize("form", [CrossModalObjective, lambda config: FusedObjective(config, compiled=False)])
def test_histogram_thresholds_stay_within_their_stated_error_of_the_authors_code(golden, pattern, form):
    numbers = golden(pattern)
    logits, labels, _ = inputs(numbers)
    parts = form(ObjectiveConfig(per_class=True))(
        logits, labels, alpha=float(numbers["alpha"]), gamma=float(numbers["gamma"])
    )
    parts.loss.backward()
    assert parts.loss.item() == pytest.approx(float(numbers["code_total_kl"]), rel=2e-5)
    for d in ("1", "2"):
        scale = abs(numbers[f"code_grad_kl{d}"]).max()
        np.testing.assert_allclose(logits[d].grad, numbers[f"code_grad_kl{d}"], rtol=1e-4, atol=2e-5 * scale)
