import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cromss.objective.crossmodal import ObjectiveConfig
from cromss.objective.ramps import Anchored, Constant, Exponential, Linear, Step
from cromss.settings import validate

RAMPS = [Exponential(), Anchored(), Linear(), Step(), Constant(), Constant(value=0.3)]


def test_alpha_and_gamma_follow_the_printed_table():
    config = ObjectiveConfig()
    table = {0: (0.99663, 0.00674), 10: (0.98912, 0.02175), 20: (0.96997, 0.06005), 40: (0.85675, 0.28650)}
    table |= {60: (0.63419, 0.73162), 79: (0.50039, 0.99922), 80: (0.5, 1), 99: (0.5, 1)}
    for epoch, (alpha, gamma) in table.items():
        assert config.alpha_at(epoch, 80) == pytest.approx(alpha, abs=5e-6)
        assert config.gamma_at(epoch, 80) == pytest.approx(gamma, abs=5e-6)


def test_ramps_equal_the_golden_numbers(golden):
    numbers = golden("ramps_*")
    linear = validate(ObjectiveConfig, {"alpha": {"ramp": {"kind": "linear"}}, "gamma": {"ramp": {"kind": "linear"}}})
    for config, name in ((ObjectiveConfig(), "exp"), (linear, "linear")):
        for at, key in ((config.alpha_at, "alpha"), (config.gamma_at, "gamma")):
            ours = [at(epoch, int(numbers["paper_ramp_epochs"])) for epoch in numbers["epoch"].tolist()]
            np.testing.assert_allclose(ours, numbers[f"code_{key}_{name}"], rtol=1e-9)


@pytest.mark.parametrize("ramp", RAMPS, ids=repr)
@given(epochs=st.integers(1, 300), one=st.floats(0, 400), other=st.floats(0, 400))
def test_a_ramp_rises_within_zero_and_one_and_ends_at_its_end(ramp, epochs, one, other):
    ramp = ramp.over(epochs)
    early, late = sorted((one, other))
    assert 0 <= ramp(early) <= ramp(late) <= 1
    assert ramp(epochs) == ramp(epochs + 100) == (0.3 if ramp == Constant(value=0.3, epochs=epochs) else 1)


def test_only_the_exponential_ramp_starts_above_zero():
    assert Exponential(epochs=80)(0) == pytest.approx(math.exp(-5))
    assert [ramp(0) for ramp in (Anchored(), Linear(), Step())] == [0, 0, 0]


def test_the_anchored_ramp_is_the_exponential_stretched():
    ramp, plain = Anchored(epochs=10), Exponential(epochs=10)
    for epoch in range(12):
        assert ramp(epoch) == pytest.approx((plain(epoch) - plain(0)) / (1 - plain(0)))


def test_the_step_is_at_the_last_epoch_of_the_ramp():
    assert [Step(epochs=3)(epoch) for epoch in (0, 2, 2.9, 3, 4)] == [0, 0, 0, 1, 1]


def test_a_ramp_follows_the_run_unless_it_has_its_own_epochs():
    assert Linear().over(10)(5) == 0.5
    assert Linear(epochs=20).over(10)(5) == 0.25
    assert Linear()(40) == 0.5  # standing alone, the paper's 80
    config = validate(ObjectiveConfig, {"gamma": {"ramp": {"kind": "linear", "epochs": 20}}})
    assert config.gamma_at(5, ramp_epochs=10) == 0.25


def test_the_ends_scale_the_ramps():
    config = validate(ObjectiveConfig, {"alpha": {"end": 0.2}, "gamma": {"end": 0.6}})
    assert (config.alpha_at(80, 80), config.gamma_at(80, 80)) == (pytest.approx(0.2), pytest.approx(0.6))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ({"alpha": {"end": 1.5}}, "alpha.end=1.5: must lie in"),
        ({"gamma": {"ramp": {"kind": "cubic"}}}, "exponential, anchored, linear, step, constant"),
        ({"ramp_epochs": 0}, "ramp_epochs=0"),
        ({"smoothing": {"kind": "spatio_temporal", "a": 0.9, "b": 0.2}}, "must not exceed 1"),
        ({"scope": "galaxy"}, "image, batch, global"),
    ],
)
def test_a_mistaken_configuration_is_refused_by_name(key, message):
    with pytest.raises(ValueError, match=message):
        validate(ObjectiveConfig, key)
