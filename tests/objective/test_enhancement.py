"""Eq. 2 and what it becomes when the teachers are not trusted alike."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cromss.config import resolve
from cromss.objective.confidence import enhance_all
from cromss.objective.crossmodal import CrossModalObjective, ObjectiveConfig
from cromss.objective.enhancement import Agreement, NoEnhancement, Trust
from cromss.settings import validate

NAMES = ("s1", "s2", "dem")


def maps(count=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(2, 9, 9, generator=generator).to(dtype) for name in NAMES[:count]}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("trust", [{}, {"s1": 1.0}, dict.fromkeys(NAMES, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_trust_is_equation_2_to_the_last_bit(count, trust, dtype):
    given = maps(count, dtype)
    for found, expected in zip(Trust(trust=trust)(given).values(), enhance_all(given).values(), strict=True):
        assert torch.equal(found, expected)


def test_a_hand_worked_pixel():
    # F = .8 .5 .2 of s1 s2 dem. s1 hears s2 (t 2) and dem (t .5): F = (1 + .1) / 2.5 = .44, t = (4 + .25) / 2.5 = 1.7
    given = dict(zip(NAMES, (torch.full((1, 1, 1), f, dtype=torch.float64) for f in (0.8, 0.5, 0.2)), strict=True))
    found = Trust(trust={"s2": 2.0, "dem": 0.5})(given)
    assert found["s1"].item() == pytest.approx(0.8 * 0.72**1.7)
    # s2 hears s1 (t 1) and dem (t .5): F = (.8 + .1) / 1.5 = .6, t = 1.25 / 1.5
    assert found["s2"].item() == pytest.approx(0.5 * 0.8 ** (1.25 / 1.5))
    # two modalities: F (1 + F') / 2 with the teacher's own exponent
    two = Trust(trust={"s1": 0.5, "s2": 2.0})({name: given[name] for name in ("s1", "s2")})
    assert two["s1"].item() == pytest.approx(0.8 * 0.75**2)
    assert two["s2"].item() == pytest.approx(0.5 * 0.9**0.5)


def test_a_teacher_without_trust_is_as_good_as_absent():
    given = maps(3)
    found = Trust(trust={"dem": 0.0})(given)
    assert torch.equal(found["s1"], enhance_all({name: given[name] for name in ("s1", "s2")})["s1"])
    assert torch.equal(Trust(trust={"s1": 0.0})(maps())["s2"], maps()["s2"])
    nobody = Trust(trust=dict.fromkeys(NAMES, 0.0))(given)
    assert all(torch.equal(nobody[name], NoEnhancement()(given)[name]) for name in NAMES)


@given(*[st.floats(0, 1)] * 3, *[st.floats(0, 5)] * 2)
def test_no_one_gains_by_being_tempered_and_more_trust_tempers_more(own, other, third, low, high):
    low, high = sorted((low, high))
    values = dict(zip(NAMES, (torch.full((1, 1, 1), f, dtype=torch.float64) for f in (own, other, third)), strict=True))
    for given_ in ({name: values[name] for name in ("s1", "s2")}, values):
        less, more = (Trust(trust={"s2": t, "dem": t})(given_)["s1"].item() for t in (low, high))
        assert 0 <= more <= less + 1e-12 <= own + 2e-12


def test_the_objective_listens_as_configured(batch):
    logits, labels, _ = batch()
    trust = {"kind": "trust", "trust": {"s1": 0.0}}
    parts = CrossModalObjective(validate(ObjectiveConfig, {"enhancement": trust}))(logits, labels, alpha=0.5, gamma=1.0)
    plain = CrossModalObjective(ObjectiveConfig())(logits, labels, alpha=0.5, gamma=1.0)
    alone = CrossModalObjective(ObjectiveConfig(enhancement=NoEnhancement()))(logits, labels, alpha=0.5, gamma=1.0)
    for field in ("confidence", "label_weights", "entropy_weights"):
        mixed, heard, deaf = (getattr(one, field) for one in (parts, plain, alone))
        assert torch.equal(mixed["s1"], heard["s1"])  # s1 hears s2 as ever
        assert torch.equal(mixed["s2"], deaf["s2"])


def test_a_lesson_of_weight_nought_teaches_nothing(batch):
    logits, labels, _ = batch()
    gradients = {}
    for lesson in (0.0, 0.25, 1.0):
        z = {name: logit.clone().requires_grad_() for name, logit in logits.items()}
        config = validate(ObjectiveConfig, {"consistency": {"teachers": {"s1": lesson}}})
        CrossModalObjective(config)(z, labels, alpha=0.5, gamma=1.0).consistency.backward()
        gradients[lesson] = {name: v.grad for name, v in z.items()}
    assert (gradients[0.0]["s2"] == 0).all()
    torch.testing.assert_close(gradients[0.25]["s2"], 0.25 * gradients[1.0]["s2"])
    assert torch.equal(gradients[0.0]["s1"], gradients[1.0]["s1"])


def test_two_ways_of_saying_the_same_are_one_run():
    def identity(**objective):
        return resolve({"objective": objective}).identity()

    def trust(**values):
        return {"kind": "trust", "trust": values}

    assert identity() == identity(enhancement=trust()) == identity(enhancement=trust(s1=1.0, s2=1.0))
    assert identity(enhancement=trust(s1=0.0, s2=0.0)) == identity(enhancement={"kind": "none"}) != identity()
    assert identity(enhancement=trust(s1=0.5)) == identity(enhancement=trust(s1=0.5, s2=1.0)) != identity()
    assert (
        identity(consistency={"teachers": {"s1": 1.0}}) == identity() != identity(consistency={"teachers": {"s1": 0.5}})
    )
    nobody = {"consistency": {"weight": 0.0}}
    assert identity(**nobody) == identity(**nobody, gamma={"end": 0.5}, confidence="gini")
    assert isinstance(Trust(trust={"s1": 1.0}).simplest(("s1", "s2")), Agreement)


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (
            {"enhancement": {"kind": "trust", "trust": {"s3": 1.0}}},
            r"objective\.enhancement\.trust: s3 is no modality here; .*s",
        ),
        ({"consistency": {"teachers": {"S1": 0.5}}}, r"objective\.consistency\.teachers: S1 is no modality here; .*s1"),
        ({"enhancement": {"kind": "trust", "trust": {"s1": -1.0}}}, r"objective\.enhancement\.trust.*-1"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused_by_name(objective, said):
    with pytest.raises(ValueError, match=said):
        resolve({"objective": objective})
