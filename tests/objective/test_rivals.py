"""Every rival against a case worked by hand, and in the limits that its authors' formula has.

The case: one image of 2 x 2 pixels, classes 0 1 2, logits chosen so that the probabilities are

    pixel        (0,0)        (0,1)        (1,0)        (1,1)
    label        0            1            2            255 (ignored)
    p of a       .5 .25 .25   .2 .6 .2     .1 .8 .1     .3 .3 .4
    p of b       .8 .1 .1     .5 .3 .2     .2 .2 .6     .1 .1 .8
"""

import math
from typing import get_args

import pytest
import torch

from cromss.config import resolve
from cromss.objective.crossmodal import CrossModalObjective, ObjectiveConfig
from cromss.objective.fused import FusedObjective
from cromss.objective.losses import as_targets, weighted_cross_entropy
from cromss.objective.methods import RIVALS, Method
from cromss.settings import validate

KINDS = [rival.model_fields["kind"].default for rival in RIVALS]
A = [[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]
B = [[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.1, 0.1, 0.8]]
LABELS = torch.tensor([[[0, 1], [2, 255]]])
ln = math.log


def logits_of(*probabilities):
    """(1, 3, 2, 2) logits of each, shifted per pixel: a softmax does not notice."""
    shift = torch.tensor([[0.0, 3.0], [-2.0, 1.0]], dtype=torch.float64)
    return [torch.tensor(p, dtype=torch.float64).T.reshape(1, 3, 2, 2).log() + shift for p in probabilities]


def objective(kind, settings=None, **others):
    return CrossModalObjective(validate(ObjectiveConfig, {"method": {"kind": kind, **(settings or {})}, **others}))


def judged(kind, settings=None, alpha=1.0, average=None, **others):
    a, b = logits_of(A, B)
    return objective(kind, settings, **others)({"a": a, "b": b}, LABELS, alpha=alpha, gamma=1.0, average=average)


def near(*values):
    return pytest.approx(sum(values) / len(values), rel=1e-12)


# --- the losses, by hand ----------------------------------------------------------------------------------------------


def test_symmetric_cross_entropy():
    # p_y: a .5 .6 .1. CE = -ln p_y; RCE = 4 (1 - p_y) = 2, 1.6, 3.6; each pixel .1 CE + RCE
    parts = judged("sce")
    assert parts.cross_entropy["a"].item() == near(2 - 0.1 * ln(0.5), 1.6 - 0.1 * ln(0.6), 3.6 - 0.1 * ln(0.1))
    # b: p_y .8 .3 .6, RCE .8, 2.8, 1.6; with alpha = 2, beta = .5, A = -6: 2 CE + 3 (1 - p_y)
    parts = judged("sce", {"alpha": 2, "beta": 0.5, "log_zero": -6})
    assert parts.cross_entropy["b"].item() == near(0.6 - 2 * ln(0.8), 2.1 - 2 * ln(0.3), 1.2 - 2 * ln(0.6))


def test_symmetric_cross_entropy_of_a_smoothed_target():
    # pixel (0,0) of a, target .9 .1 0: RCE = -(.5 ln .9 + .25 ln .1 - .25 * 4); the others are ignored
    targets = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    targets[0, :2, 0, 0] = torch.tensor([0.9, 0.1], dtype=torch.float64)
    (a,) = logits_of(A)
    parts = objective("sce", {"alpha": 0})(
        {"a": a}, LABELS.where(LABELS == 0, 255), alpha=1.0, gamma=1.0, targets=targets
    )
    assert parts.cross_entropy["a"].item() == near(1 - 0.5 * ln(0.9) - 0.25 * ln(0.1))


def test_generalised_cross_entropy():
    # q = .5: 2 (1 - sqrt p_y); p_y of a .5 .6 .1
    parts = judged("gce", {"q": 0.5})
    assert parts.cross_entropy["a"].item() == near(*(2 * (1 - math.sqrt(p)) for p in (0.5, 0.6, 0.1)))


def test_bootstrapping():
    # .95 CE + .05 H(p); H of a: 1.5 ln 2, .4 ln 5 - .6 ln .6, .2 ln 10 - .8 ln .8
    entropies = 1.5 * ln(2), 0.4 * ln(5) - 0.6 * ln(0.6), 0.2 * ln(10) - 0.8 * ln(0.8)
    expected = [0.05 * h - 0.95 * ln(p) for h, p in zip(entropies, (0.5, 0.6, 0.1), strict=True)]
    assert judged("bootstrapping").cross_entropy["a"].item() == near(*expected)


def test_early_learning_regularisation():
    # t of a is b's p, t of b uniform. <p, t> of a: .4 + .025 + .025 = .45, .1 + .18 + .04 = .32, .02 + .16 + .06 = .24;
    # of b 1/3 everywhere. The term is 3 (mean ln(1 - .45), ln(1 - .32), ln(1 - .24); + ln 2/3), CE is left alone
    (target,) = logits_of(B)
    parts = judged("elr", average={"a": target, "b": torch.zeros_like(target)})
    assert parts.extra.item() / 3 == near(*(ln(1 - x) + ln(2 / 3) for x in (0.45, 0.32, 0.24)))
    assert parts.cross_entropy["a"].item() == near(-ln(0.5), -ln(0.6), -ln(0.1))
    torch.testing.assert_close(parts.loss, parts.segmentation + parts.consistency + parts.extra)


def test_early_learning_without_an_averaged_network_takes_its_own_prediction():
    # <p, p> of a: .375, .44, .66; of b .66, .38, .44
    own = [ln(1 - x) + ln(1 - y) for x, y in ((0.375, 0.66), (0.44, 0.38), (0.66, 0.44))]
    assert judged("elr").extra.item() / 3 == near(*own)


def test_small_loss_keeps_the_pixels_that_are_easy_for_the_modality_itself():
    # 2 of 3: a finds (0,0) and (0,1) easy (.5 .6 against .1), b (0,0) and (1,0) (.8 .6 against .3)
    parts = judged("small_loss", alpha=0.7)
    assert parts.label_weights["a"].tolist() == [[[1, 1], [0, 0]]]
    assert parts.label_weights["b"].tolist() == [[[1, 0], [1, 0]]]
    assert parts.cross_entropy["a"].item() == near(-ln(0.5), -ln(0.6))


def test_co_teaching_trains_each_modality_on_what_the_other_finds_easy():
    parts = judged("co_teaching", alpha=0.7)
    assert parts.label_weights["a"].tolist() == [[[1, 0], [1, 0]]]
    assert parts.label_weights["b"].tolist() == [[[1, 1], [0, 0]]]
    assert parts.cross_entropy["a"].item() == near(-ln(0.5), -ln(0.1))
    assert parts.cross_entropy["b"].item() == near(-ln(0.8), -ln(0.3))


def test_of_two_others_the_mean_loss_decides():
    # a's others are b (.8 .3 .6) and c = uniform (1/3 each): their order is b's; b's others a and c: a's order
    a, b = logits_of(A, B)
    maps = objective("co_teaching").select({"a": a, "b": b, "c": torch.zeros_like(a)}, LABELS, alpha=0.7, gamma=1.0)
    assert maps.label_weights["a"].tolist() == [[[1, 0], [1, 0]]]
    assert maps.label_weights["b"].tolist() == [[[1, 1], [0, 0]]]
    # c's others: geometric means sqrt(.5 .8) = .63, sqrt(.6 .3) = .42, sqrt(.1 .6) = .24
    assert maps.label_weights["c"].tolist() == [[[1, 1], [0, 0]]]


def test_jocor():
    # l = .5. CE sums: -ln(.5 .8) = .916, -ln(.6 .3) = 1.715, -ln(.1 .6) = 2.813. KL both ways, sum (p - q) ln(p / q):
    # (0,0): -.3 ln(5/8) + 2 x .15 ln 2.5; (0,1): -.3 ln .4 + .3 ln 2 + 0; (1,0): -.1 ln .5 + .6 ln 4 - .5 ln(1/6)
    kl = [
        -0.3 * ln(5 / 8) + 0.3 * ln(2.5),
        -0.3 * ln(0.4) + 0.3 * ln(2),
        -0.1 * ln(0.5) + 0.6 * ln(4) - 0.5 * ln(1 / 6),
    ]
    ce = [-ln(0.4), -ln(0.18), -ln(0.06)]
    parts = judged("jocor", {"agreement": 0.5}, alpha=0.7)  # joint: .666, 1.099, 2.303: the first two are kept
    assert parts.label_weights["a"].tolist() == parts.label_weights["b"].tolist() == [[[1, 1], [0, 0]]]
    expected = sum(0.5 * c + 0.5 * k for c, k in zip(ce[:2], kl[:2], strict=True)) / 2
    found = parts.cross_entropy["a"] + parts.cross_entropy["b"] + parts.extra
    assert found.item() == pytest.approx(expected)
    assert parts.consistency == 0
    torch.testing.assert_close(parts.loss, found + parts.dice["a"] + parts.dice["b"])


def test_jocor_selects_by_the_joint_loss_not_by_cross_entropy_alone():
    # with l = 1 only the divergence counts: .416 (0,0), .483 (0,1), 1.797 (1,0); keep 1 of 3
    assert judged("jocor", {"agreement": 1.0}, alpha=0.4).label_weights["a"].tolist() == [[[1, 0], [0, 0]]]
    # b certain of a wrong (0,0): its divergence is now the largest
    a, b = logits_of(A, [[0.01, 0.98, 0.01], *B[1:]])
    maps = objective("jocor", {"agreement": 1.0}).select({"a": a, "b": b}, LABELS, alpha=0.4, gamma=1.0)
    assert maps.label_weights["a"].tolist() == [[[0, 1], [0, 0]]]


# --- limits -----------------------------------------------------------------------------------------------------------


def compared(batch, one, other, alpha=1.0, smoothed=False, field="loss", **more):
    """The parts `field` and the logits' gradients of its sum, under two settings."""
    logits, labels, valid = batch()
    targets = 0.8 * as_targets(labels, 5).double() + 0.04 * (labels != 255)[:, None] if smoothed else None
    found = []
    for settings in (one, other):
        z = {name: logit.clone().requires_grad_() for name, logit in logits.items()}
        parts = CrossModalObjective(validate(ObjectiveConfig, {**more, **settings}))(
            z, labels, alpha=alpha, gamma=1.0, valid=valid, targets=targets
        )
        value = getattr(parts, field)
        value = sum(value.values()) if isinstance(value, dict) else value
        value.backward()
        found.append((value.detach(), [logit.grad for logit in z.values()]))
    return found


def method(kind, **settings):
    return {"method": {"kind": kind, **settings}}


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize(
    ("rival", "tolerance"),
    [
        (method("sce", alpha=1, beta=0), 1e-12),
        (method("gce", q=1e-9), 1e-6),
        (method("bootstrapping", beta=1), 1e-12),
        (method("elr", weight=0), 1e-12),
        (method("small_loss"), 1e-12),
        (method("co_teaching"), 1e-12),
        (method("jocor", agreement=0) | {"consistency": {"weight": 0}}, 1e-12),
    ],
    ids=str,
)
def test_in_its_limit_a_rival_is_the_baseline(batch, rival, tolerance, smoothed):
    """SCE beta 0, GCE q -> 0, bootstrapping beta 1, ELR lambda 0, selections that keep everything; JoCoR lambda 0
    without consistency."""
    plain = method("plain") | {key: value for key, value in rival.items() if key == "consistency"}
    (one, gradients), (other, expected) = compared(batch, rival, plain, smoothed=smoothed)
    torch.testing.assert_close(one, other, rtol=tolerance, atol=0)
    torch.testing.assert_close(gradients, expected, rtol=tolerance, atol=1e-9 if tolerance > 1e-9 else 1e-12)


def test_symmetric_cross_entropy_scales_with_alpha(batch):
    (one, _), (plain, _) = compared(batch, method("sce", alpha=3, beta=0), method("plain"), field="cross_entropy")
    torch.testing.assert_close(one, 3 * plain)


def test_generalised_cross_entropy_at_one_is_half_the_absolute_error(batch):
    logits, labels, _ = batch()
    z = logits["s1"]
    known = labels != 255
    error = (z.softmax(1) - as_targets(labels, 5)).abs().sum(1)[known].mean()
    parts = objective("gce", {"q": 1})({"s1": z}, labels, alpha=1.0, gamma=0.0)
    torch.testing.assert_close(parts.cross_entropy["s1"], error / 2)


def test_bootstrapping_at_zero_is_the_entropy_and_its_gradient_flows_through_the_target_too(batch):
    (found, gradients), _ = compared(batch, method("bootstrapping", beta=0), method("plain"), field="cross_entropy")
    logits, labels, valid = batch()
    z = {name: logit.clone().requires_grad_() for name, logit in logits.items()}
    known = (labels != 255) & valid
    entropy = sum(-(v.softmax(1) * v.log_softmax(1)).sum(1)[known].mean() for v in z.values())
    entropy.backward()
    torch.testing.assert_close(found, entropy.detach())
    torch.testing.assert_close(gradients, [v.grad for v in z.values()])


def test_a_selection_under_smoothed_labels_still_looks_at_the_labels(batch):
    logits, labels, _ = batch()
    targets = 0.8 * as_targets(labels, 5).double() + 0.04 * (labels != 255)[:, None]
    for kind in ("small_loss", "co_teaching", "jocor"):
        hard, soft = (
            objective(kind)(logits, labels, alpha=0.4, gamma=1.0, targets=given).label_weights
            for given in (None, targets)
        )
        torch.testing.assert_close(soft, hard, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["small_loss", "co_teaching", "jocor"])
@pytest.mark.parametrize("scope", ["batch", "image"])
@pytest.mark.parametrize("per_class", [False, True])
def test_a_selection_keeps_its_share(batch, kind, scope, per_class):
    logits, labels, valid = batch()
    maps = objective(kind, scope=scope, per_class=per_class).select(logits, labels, alpha=0.4, gamma=1.0, valid=valid)
    known = (labels != 255) & valid
    groups = [known & (labels == c) for c in range(5)] if per_class else [known]
    if scope == "image":
        rows = torch.arange(len(labels)).view(-1, 1, 1)
        groups = [group & (rows == row) for group in groups for row in range(len(labels))]
    for weights in maps.label_weights.values():
        assert set(weights.unique().tolist()) == {0.0, 1.0}
        assert (weights[~known] == 0).all()
        for group in groups:
            assert weights[group].sum().item() == max(int(not per_class), math.floor(0.4 * int(group.sum())))


# --- what holds for all -----------------------------------------------------------------------------------------------


def test_every_rival_is_a_member_with_a_title_of_its_own():
    members = get_args(get_args(Method)[0])
    assert set(RIVALS) < set(members)
    titles = [member.title for member in members]
    assert len(set(titles)) == len(members)
    assert titles[3:] == ["SCE", "GCE", "Bootstrapping", "ELR", "Co-teaching", "JoCoR", "SmallLoss"]


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_and_invalid_pixels_may_hold_anything(batch, kind):
    """They have weight 0, no part in any threshold and, but for the consistency, no gradient."""
    logits, labels, valid = batch()
    unknown = (labels == 255) | ~valid
    generator = torch.Generator().manual_seed(9)
    other = {
        m: z.where(~unknown[:, None], torch.randn(z.shape, generator=generator).double()) for m, z in logits.items()
    }
    found = []
    for given in (logits, other):
        z = {name: logit.clone().requires_grad_() for name, logit in given.items()}
        parts = objective(kind, consistency={"weight": 0})(
            z, labels, alpha=0.5, gamma=1.0, valid=valid, average={name: 0.5 * logit for name, logit in given.items()}
        )
        parts.loss.backward()
        assert all((v.grad.movedim(1, -1)[unknown] == 0).all() for v in z.values())
        assert all((w[unknown] == 0).all() for w in parts.label_weights.values())
        found.append(parts.loss.detach())
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saturated_logits_and_absent_labels_stay_finite(batch, kind, dtype):
    logits, labels, valid = batch()
    for given in (labels, labels.where(labels != 3, 0), torch.full_like(labels, 255)):
        z = {m: (v.sign() * 1e4).to(dtype).requires_grad_() for m, v in logits.items()}
        parts = objective(kind)(
            z, given, alpha=0.5, gamma=1.0, valid=valid, average={m: v.detach() for m, v in z.items()}
        )
        parts.loss.backward()
        assert parts.loss.isfinite()
        assert parts.loss.dtype == torch.float32
        assert all(v.grad.isfinite().all() for v in z.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_pixels_does_not_matter(batch, kind):
    logits, labels, valid = batch()
    average = {name: 0.5 * z for name, z in logits.items()}
    shuffled = torch.randperm(labels[0].numel(), generator=torch.Generator().manual_seed(1))

    def moved(map_):
        return map_.flatten(-2)[..., shuffled].view(map_.shape)

    losses = [
        objective(kind)(
            {m: move(z) for m, z in logits.items()}, move(labels), alpha=0.3, gamma=1.0, valid=move(valid),
            average={m: move(z) for m, z in average.items()},
        ).loss
        for move in (lambda map_: map_, moved)
    ]  # fmt: skip
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_alone_a_rival_works_or_says_what_to_take(batch, kind):
    logits, labels, _ = batch()
    alone = {"model": {"fusion": {"kind": "single"}}, "transfer": {"modalities": ["s2"]}, "objective": method(kind)}
    if kind in ("co_teaching", "jocor"):
        said = rf"method\.kind={kind}: each modality learns from the other, and there is only s2; take small_loss"
        with pytest.raises(ValueError, match=said):
            objective(kind)({"s2": logits["s2"]}, labels, alpha=0.5, gamma=1.0)
        with pytest.raises(ValueError, match=said):
            resolve(alone)
    else:
        assert resolve(alone).objective.method.kind == kind
        assert objective(kind)({"s2": logits["s2"]}, labels, alpha=0.5, gamma=1.0).loss.isfinite()


@pytest.mark.parametrize("kind", KINDS)
def test_three_modalities(batch, kind):
    logits, labels, valid = batch()
    z = {name: v.clone().requires_grad_() for name, v in (logits | {"dem": logits["s1"].flip(2)}).items()}
    parts = objective(kind)(z, labels, alpha=0.5, gamma=1.0, valid=valid)
    parts.loss.backward()
    assert all((v.grad != 0).any() for v in z.values())


@pytest.mark.parametrize("rival", RIVALS)
def test_what_a_rival_does_not_read_is_no_part_of_the_identity(rival):
    kind = rival.model_fields["kind"].default
    base = {"objective": method(kind)}
    changes = {
        "alpha": {"end": 0.1}, "gamma": {"end": 0.1}, "ramp_epochs": 7, "per_class": True, "threshold": {"kind": "exact"},
        "confidence": "gini", "enhancement": {"kind": "none"},
    }  # fmt: skip
    for key, value in changes.items():
        same = resolve(base).identity() == resolve(base, {"objective": {key: value}}).identity()
        assert same == (key not in rival.reads), key
    for name, field in rival.model_fields.items():
        if name != "kind":
            changed = resolve(base, {"objective": method(kind, **{name: field.default * 0.9})})
            assert resolve(base).identity() != changed.identity()


@pytest.mark.parametrize("kind", [k for k, rival in zip(KINDS, RIVALS, strict=True) if not rival.closed_form])
def test_the_fused_objective_refuses_what_it_has_no_gradient_for(kind):
    with pytest.raises(ValueError, match=f"kind={kind}: has no closed form"):
        FusedObjective(validate(ObjectiveConfig, method(kind)), compiled=False)


def test_weighted_cross_entropy_is_still_what_the_baseline_pays(batch):
    logits, labels, _ = batch()
    parts = objective("plain")(logits, labels, alpha=0.1, gamma=1.0)
    expected = weighted_cross_entropy(logits["s1"], labels, torch.ones(labels.shape))
    torch.testing.assert_close(parts.cross_entropy["s1"], expected)
