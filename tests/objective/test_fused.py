"""The objective for compilers against the one for readers: values, weights and gradients."""

import shutil
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cromss.objective.crossmodal import CrossModalObjective, ObjectiveConfig
from cromss.objective.fused import FusedObjective
from cromss.objective.losses import as_targets
from cromss.settings import validate

KINDS = ("kl", "cross_entropy", "mse")
CHOICES = [
    {},
    {"per_class": True, "consistency": {"kind": "cross_entropy"}},
    {"per_class": True, "scope": "image", "consistency": {"kind": "mse", "weight": 0.3}},
    {"scope": "image", "confidence": "gini", "enhancement": {"kind": "none"}},
    {"method": {"kind": "plain"}},
    {"method": {"kind": "oracle"}, "threshold": {"kind": "exact"}},
    {"method": {"kind": "co_teaching"}},
    {"method": {"kind": "small_loss"}, "scope": "image", "per_class": True},
    {"enhancement": {"kind": "trust", "trust": {"s1": 0.3, "s2": 2.0}}, "consistency": {"teachers": {"s1": 0.2}}},
    {"enhancement": {"kind": "trust", "trust": {"s1": 0.0}}, "consistency": {"kind": "mse", "teachers": {"s1": 0.0}}},
]


def both(logits, labels, settings, compiled=False, **how):
    """(parts, gradients) of the readable and of the fused objective."""
    config = validate(ObjectiveConfig, settings)
    outcomes = []
    for form in (CrossModalObjective(config), FusedObjective(config, compiled=compiled)):
        z = {name: logit.clone().requires_grad_() for name, logit in logits.items()}
        parts = form(z, labels, **how)
        parts.loss.backward()
        outcomes.append((parts, {name: logit.grad for name, logit in z.items()}))
    return outcomes


def assert_alike(one, other, **tolerance):
    for field, ours, theirs in zip(one[0]._fields, one[0], other[0], strict=True):
        torch.testing.assert_close(theirs, ours, **tolerance, msg=lambda text, field=field: f"{field}: {text}")
    torch.testing.assert_close(other[1], one[1], **tolerance)


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("settings", CHOICES, ids=str)
def test_every_choice_of_the_configuration_gives_the_same_parts_and_gradients(batch, settings, smoothed):
    logits, labels, valid = batch()
    targets = 0.8 * as_targets(labels, 5).double() + 0.04 * (labels != 255)[:, None] if smoothed else None
    how = {"alpha": 0.4, "gamma": 0.7, "valid": valid, "targets": targets, "clean": labels.roll(1, 2)}
    assert_alike(*both(logits, labels, settings, **how), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("modalities", [("s2",), ("s1", "s2"), ("s1", "s2", "dem")])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trust", [{}, {"s1": 0.4, "dem": 2.0}])
def test_any_number_of_modalities(modalities, kind, trust):
    generator = torch.Generator().manual_seed(3)
    logits = {name: torch.randn(2, 4, 6, 5, generator=generator, dtype=torch.float64) for name in modalities}
    labels = torch.randint(0, 4, (2, 6, 5), generator=generator)
    settings = {"consistency": {"kind": kind, "teachers": trust}, "enhancement": {"kind": "trust", "trust": trust}}
    assert_alike(*both(logits, labels, settings, alpha=0.5, gamma=1.0), rtol=1e-9, atol=1e-12)


def test_an_absent_class_and_nothing_labelled(batch):
    logits, labels, _ = batch()
    for given in (labels.where(labels != 3, 0), torch.full_like(labels, 255)):
        assert_alike(*both(logits, given, {}, alpha=0.5, gamma=1.0), rtol=1e-9, atol=1e-12)


def test_pixels_without_data_may_hold_anything(batch):
    logits, labels, valid = batch()
    spoiled = {name: z.masked_fill(~valid.unsqueeze(1), float("nan")) for name, z in logits.items()}
    (clean, _), (parts, gradients) = both(spoiled, labels, {}, alpha=0.5, gamma=1.0, valid=valid)
    assert torch.isfinite(parts.loss)
    torch.testing.assert_close(parts.loss, clean.loss)
    for gradient in gradients.values():
        assert (gradient.permute(0, 2, 3, 1)[~valid] == 0).all()


def test_bfloat16_logits_are_summed_in_float32(batch):
    logits, labels, _ = batch()
    coarse = {name: z.bfloat16() for name, z in logits.items()}
    wide, _ = both({name: z.float() for name, z in coarse.items()}, labels, {}, alpha=0.5, gamma=1.0)
    _, (parts, gradients) = both(coarse, labels, {}, alpha=0.5, gamma=1.0)
    assert parts.loss.dtype == torch.float32
    torch.testing.assert_close(parts.loss, wide[0].loss, rtol=1e-6, atol=0)
    assert all(gradient.dtype == torch.bfloat16 for gradient in gradients.values())


def test_the_gradient_is_scaled_by_what_comes_from_above(batch):
    logits, labels, _ = batch()
    gradients = []
    for factor in (1.0, 3.0):
        z = {name: logit.clone().requires_grad_() for name, logit in logits.items()}
        (factor * FusedObjective(ObjectiveConfig(), compiled=False)(z, labels, alpha=0.5, gamma=1.0).loss).backward()
        gradients.append(z["s1"].grad)
    torch.testing.assert_close(gradients[1], 3 * gradients[0])


@pytest.mark.parametrize("form", [CrossModalObjective, lambda config: FusedObjective(config, compiled=False)])
@pytest.mark.parametrize("settings", CHOICES, ids=str)
def test_nothing_is_read_back_from_the_device_and_no_shape_depends_on_the_data(form, settings):
    with FakeTensorMode():
        z = {name: torch.randn(2, 5, 8, 8, requires_grad=True) for name in ("s1", "s2")}
        labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
        shares = {name: torch.tensor(0.5, dtype=torch.float64) for name in ("alpha", "gamma")}
        valid = torch.ones(2, 8, 8, dtype=torch.bool)
        form(validate(ObjectiveConfig, settings))(z, labels, valid=valid, clean=labels, **shares).loss.backward()
        assert z["s1"].grad.shape == z["s1"].shape


COMPILED = """
import torch
from cromss.objective.crossmodal import CrossModalObjective, ObjectiveConfig
from cromss.objective.fused import FusedObjective

generator = torch.Generator().manual_seed(0)
logits = {m: torch.randn(2, 3, 12, 16, generator=generator) for m in ("s1", "s2")}
labels = torch.randint(0, 3, (2, 12, 16), generator=generator, dtype=torch.uint8)
labels[0, :2] = 255
valid = torch.ones(labels.shape, dtype=torch.bool)
valid[0, :3, :4] = False
config = ObjectiveConfig(per_class=True)
forms = CrossModalObjective(config), FusedObjective(config)
for alpha in (1.0, 0.6):
    shares = {"alpha": torch.tensor(alpha, dtype=torch.float64), "gamma": torch.tensor(0.5, dtype=torch.float64)}
    found = []
    for form in forms:
        z = {name: logit.clone().requires_grad_() for name, logit in logits.items()}
        with torch.compiler.set_stance("fail_on_recompile" if alpha < 1 else "default"):
            loss = form(z, labels, valid=valid, **shares).loss
            loss.backward()
        found.append((loss.detach(), {name: logit.grad for name, logit in z.items()}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-7)
print("alike")
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU; g++ is not here")
def test_compiled_it_gives_the_same_numbers_and_one_compilation_serves_every_epoch():
    """In a process of its own: the types that the tests check at run time cannot be compiled."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=300)
    assert done.stdout == "alike\n", done.stderr[-2000:]
