"""One honest sentence per space: the pairs that it rests on, and that it says `no difference` only where there is none."""

import numpy as np
import pytest
import scipy.stats
from records import trial

from cromss.trials.answers import Best, Compare, Trend, answer, asked, details
from cromss.trials.observations import Pair, by_seed, factors_of, pairs_of, scores_of
from cromss.trials.response import responding, response

KIND, RATE = "world.noise.kind", "world.noise.rate"


def factorial(
    gain: dict[str, float], seeds=range(4), spread: float = 0.002, arms=("CromSS-midF", "midF")
) -> list[dict]:
    """Both arms in two kinds of noise at two rates; the gain of the first depends on the kind."""
    rng = np.random.default_rng(1)
    trials = []
    for kind, more in gain.items():
        for rate in (0.1, 0.5):
            for seed in seeds:
                base = 0.5 - 0.4 * rate + 0.05 * seed
                plain, own = base, base + more + rng.normal(0, spread)
                for arm, score in zip(arms, (own, plain), strict=True):
                    trials.append(trial(arm, seed, {"s1": [score], "s2": [score]}, **{KIND: kind, RATE: rate}))
    return trials


def test_pairs_share_everything_but_what_is_compared() -> None:
    trials = factorial({"dw": 0.03, "model": -0.01})
    pairs = pairs_of(scores_of(trials), "arm", "CromSS-midF", "midF")
    assert len(pairs) == 2 * 2 * 4
    assert all(abs(pair.difference - {"dw": 0.03, "model": -0.01}[pair.parameters[KIND]]) < 0.01 for pair in pairs)
    del trials[0]
    assert len(pairs_of(scores_of(trials), "arm", "CromSS-midF", "midF")) == 2 * 2 * 4 - 1


def test_pairs_of_one_seed_are_one_witness() -> None:
    """Sixteen pairs of four seeds: the interval is that of four values."""
    trials = factorial({"dw": 0.03, "model": -0.01}, spread=0.0005)
    values = by_seed(pairs_of(scores_of(trials), "arm", "CromSS-midF", "midF"))
    assert list(values) == [0, 1, 2, 3]
    low, high = scipy.stats.ttest_1samp(list(values.values()), 0).confidence_interval(0.95)
    said = answer({"answer": {"kind": "compare", "a": "CromSS-midF", "b": "midF"}}, trials)
    assert said.startswith("CromSS-midF against midF, mean S1/S2 frozen mIoU: higher by 1.0 points [")
    assert f"[+{100 * low:.1f}, +{100 * high:.1f}], 4 seeds, over 4 settings of the rest." in said.replace("though", "")


@pytest.mark.parametrize(
    ("gain", "spread", "said"),
    [
        (0.02, 0.002, "higher by 2."),
        (-0.02, 0.002, "lower by "),
        (0.0, 0.002, "no difference as large as 1.0 (TOST p "),
        (0.01, 0.06, "too few seeds to tell: "),
        (0.0, 0.0, "no difference in any of 4 seeds"),
        (0.004, 0.0001, "though by less than 1.0"),
    ],
)
def test_a_comparison_says_what_the_seeds_allow(gain: float, spread: float, said: str) -> None:
    assert said in Compare("CromSS-midF", "midF").sentence(factorial({"dw": gain}, spread=spread), "mean")


def test_every_level_of_every_other_factor_has_its_line() -> None:
    lines = details(
        {"answer": {"kind": "compare", "a": "CromSS-midF", "b": "midF"}}, factorial({"dw": 0.03, "model": 0.0})
    )
    names = [
        f"{KIND}=dw",
        f"{KIND}=model",
        f"{RATE}=0.1",
        f"{RATE}=0.5",
        "S1 alone, not tested",
        "S2 alone, not tested",
    ]
    assert [line.split(":")[0] for line in lines] == names
    assert "dw: higher by 3." in lines[0]
    assert "no difference" in lines[1]
    assert all("corrected over 4 levels" in line for line in lines[:4])
    assert not any("corrected" in line for line in lines[4:])


def test_a_parameter_that_follows_from_another_is_no_factor() -> None:
    cells = [
        ("dw", 0.2, 96, 40),
        ("dw", 0.2, 384, 10),
        ("pair", 0.4, 96, 40),
        ("pair", 0.4, 384, 10),
        ("border", 0.4, 96, 40),
    ]
    pairs = [Pair(seed, {KIND: kind, RATE: rate, "world.places": places, "optim.epochs": epochs}, 0.0)
             for seed, (kind, rate, places, epochs) in enumerate(cells)]  # fmt: skip
    assert factors_of(pairs) == {KIND: ["border", "dw", "pair"], "world.places": [96, 384]}
    assert factors_of([]) == {}


def test_two_values_of_a_parameter_are_compared_like_two_arms() -> None:
    trials = [trial("CromSS-midF", seed, {"s2": [0.5 + 0.02 * (scope == "class") + 0.001 * seed * (scope == "class")]},
                    **{"objective.scope": scope}) for seed in range(3) for scope in ("batch", "class")]  # fmt: skip
    said = Compare("class", "batch", "objective.scope").sentence(trials, "s2")
    assert said.startswith("objective.scope=class against batch, S2 frozen mIoU: higher by 2.1 points [")


def test_a_trend_is_the_rise_of_each_seeds_line_over_the_range() -> None:
    """Slopes of -.4, -.5, -.6 over rates .1 to .6: the rises are -.2, -.25, -.3."""
    trials = [
        trial("midF", seed, {"s2": [0.9 + 0.01 * seed - slope * rate]}, **{RATE: rate})
        for seed, slope in enumerate((0.4, 0.5, 0.6)) for rate in (0.1, 0.3, 0.6)
    ]  # fmt: skip
    low, high = scipy.stats.ttest_1samp([-0.2, -0.25, -0.3], 0).confidence_interval(0.95)
    interval = f"[{100 * low:.1f}, {100 * high:.1f}]".replace("-", "\N{MINUS SIGN}")
    said = Trend(RATE).sentence(trials, "s2")
    assert f"midF: lower by 25.0 points {interval}, 3 seeds from 0.1 to 0.6." in said
    assert Trend("absent").sentence(trials, "s2").startswith("Not answered yet")


def test_a_trend_of_two_arms_is_that_of_their_difference() -> None:
    trials = [
        trial(arm, seed, {"s2": [0.9 - rate + (0.1 + 0.01 * seed) * rate * (arm != "midF")]}, **{RATE: rate})
        for arm in ("midF", "CromSS-midF") for seed in range(3) for rate in (0.0, 0.5)
    ]  # fmt: skip
    said = Trend(RATE, "CromSS-midF", "midF").sentence(trials, "s2")
    assert "CromSS-midF \N{MINUS SIGN} midF: higher by 5.5 points" in said
    assert len(Trend(RATE, "CromSS-midF", "midF").details(trials, "s2")) == 2


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"a": [0.5, 0.51, 0.52], "b": [0.3, 0.31, 0.315]}, "a is best of 2: "),
        (
            {"a": [0.5, 0.51, 0.52], "b": [0.499, 0.511, 0.519]},
            "Between a and b: no difference as large as 1.0 point; a leads",
        ),
        ({"a": [0.5, 0.6, 0.7], "b": [0.55, 0.5, 0.65]}, "Too few seeds to tell a and b apart"),
        ({"a": [0.5], "b": [0.3]}, "Too few seeds to tell: a leads"),
        ({"a": [0.5, 0.6]}, "One configuration was judged, a: "),
        ({"oracle-midF": [0.9, 0.91, 0.92], "a": [0.5, 0.51, 0.52], "b": [0.3, 0.31, 0.315]}, "a is best of 2: "),
        ({}, "Not answered yet"),
    ],
)
def test_the_best_is_best_only_where_the_seeds_can_tell_it_from_all_others(scores: dict, said: str) -> None:
    trials = [trial(arm, seed, {"s2": [value]}) for arm, values in scores.items() for seed, value in enumerate(values)]
    assert Best().sentence(trials, "s2").startswith(said)


def test_answers_travel_through_sweep_json_and_take_their_fields_in_order() -> None:
    for one in (
        Best(),
        Compare("a", "b"),
        Compare(0.3, 0.5, "objective.alpha.end"),
        Trend(RATE),
        Trend(RATE, "a", "b"),
    ):
        assert asked({"answer": one.model_dump(mode="json")}) == one
    assert asked({}) == Best()
    with pytest.raises(ValueError, match="valid kinds: best, compare, trend"):
        asked({"answer": {"kind": "guess"}})


def test_a_response_curve_has_a_point_per_value_with_seeds_as_the_unit() -> None:
    trials = factorial({"dw": 0.0, "model": 0.1}, spread=0.0)
    found = response(trials, RATE)
    assert list(found) == ["CromSS-midF", "midF"]
    values = np.array([0.5 - 0.4 * 0.1 + 0.05 * seed for seed in range(4)])
    point = found["midF"][0]
    assert (point.x, point.mean, point.n) == (0.1, pytest.approx(values.mean()), 4)
    oracle = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (point.low, point.high) == (pytest.approx(oracle.low), pytest.approx(oracle.high))
    assert found["CromSS-midF"][1].mean == pytest.approx(0.5 - 0.2 + 0.075 + 0.05)
    assert responding(trials) == [RATE]
    assert response(trials, "absent") == {}


def test_noise_detection_has_curves_too() -> None:
    trials = [trial("CromSS-midF", 0, {}, **{RATE: rate}) | {"noise": {"s2": {"auroc_W": 1 - rate, "auroc_F": 0.9}}}
              for rate in (0.0, 0.4)]  # fmt: skip
    trials.append(trial("midF", 0, {}, **{RATE: 0.4}) | {"noise": None})
    assert [(point.x, point.mean) for point in response(trials, RATE, "auroc")["CromSS-midF"]] == [
        (0.0, 1.0),
        (0.4, 0.6),
    ]
    assert [point.mean for point in response(trials, RATE, "auroc_F")["CromSS-midF"]] == [0.9, 0.9]
