"""Each test against scipy, an enumerated case or a hand-worked one; the intervals against what they promise."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from cromss.trials import statistics
from cromss.trials.statistics import (
    bootstrap_interval,
    equivalence,
    finding,
    holm,
    paired_t,
    sign_flip,
    smallest_sign_flip,
    t_interval,
)

differences = st.lists(st.floats(-1, 1), min_size=2, max_size=9).filter(lambda values: np.std(values) > 1e-6)


@given(differences)
def test_the_t_test_and_its_interval_are_those_of_scipy(values: list[float]) -> None:
    oracle = scipy.stats.ttest_1samp(values, 0)
    assert paired_t(values) == pytest.approx(oracle.pvalue, rel=1e-6, abs=1e-12)
    assert t_interval(values) == pytest.approx(tuple(oracle.confidence_interval(0.95)), rel=1e-6, abs=1e-9)


# on a grid whose sums are exact: of means that differ in the last digit alone scipy takes some for a tie and we do not
exact = st.lists(st.integers(-1024, 1024).map(lambda n: n / 1024), min_size=2, max_size=9).filter(any)


@given(exact)
def test_the_sign_flip_test_is_the_exact_permutation_test_of_scipy(values: list[float]) -> None:
    oracle = scipy.stats.permutation_test(
        (values, np.zeros(len(values))), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip(values) == pytest.approx(oracle.pvalue)


def test_sign_flips_counted_by_hand() -> None:
    """1, 2, 3: of the sums ±1 ±2 ±3 two are as far from zero as 6. 3, 3, -1: sums of size 7 (two) and 5 (two) of eight."""
    assert sign_flip([1, 2, 3]) == 2 / 8 == smallest_sign_flip(3)
    assert sign_flip([3, 3, -1]) == 4 / 8
    assert sign_flip([0.0, 0.0]) == 1
    assert sign_flip([]) is None
    assert [smallest_sign_flip(n) for n in (1, 2, 5)] == [1, 0.5, 0.0625]


def test_beyond_enumeration_the_flips_are_drawn_and_the_answer_is_nearly_the_same() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 17)
    drawn = sign_flip(values)
    exact = np.mean([abs(np.dot(s, values)) >= abs(values.sum()) for s in itertools.product((1, -1), repeat=17)])
    assert drawn == pytest.approx(exact, abs=0.01)
    assert sign_flip(np.ones(40)) > 0  # a drawn test is never certain


def test_holm_by_hand() -> None:
    """.01 .04 .03 .005 sorted: .005 x 4, .01 x 3, .03 x 2, .04 x 1 which may not fall below .06."""
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_no_correction_and_bonferroni(ps: list[float]) -> None:
    corrected = holm(ps)
    assert all(p <= c <= min(1, len(ps) * p) for p, c in zip(ps, corrected, strict=True))
    assert [c for _, c in sorted(zip(ps, corrected, strict=True))] == sorted(corrected)


@given(differences, st.floats(0.01, 0.5))
def test_equivalence_is_the_90_percent_interval_within_the_margin(values: list[float], margin: float) -> None:
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
    if abs(low + margin) < 1e-9 or abs(high - margin) < 1e-9:
        return
    assert (equivalence(values, margin) < 0.05) == (-margin < low and high < margin)


def test_equivalence_is_the_larger_of_two_one_sided_t_tests() -> None:
    values = [0.004, -0.002, 0.001, 0.003]
    above = scipy.stats.ttest_1samp(values, -0.01, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(values, 0.01, alternative="less").pvalue
    assert equivalence(values, 0.01) == pytest.approx(max(above, below))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([0.021, 0.019, 0.020], "higher"),
        ([-0.021, -0.019, -0.020], "lower"),
        ([0.001, -0.001, 0.000, 0.001], "no difference"),
        ([0.03, -0.02, 0.01], "unclear"),
        ([0.0, 0.0], "no difference"),
        ([0.01, 0.01], "unclear"),
        ([0.5], "unclear"),
    ],
)
def test_no_difference_is_a_finding_and_not_the_absence_of_one(values: list[float], found: str) -> None:
    assert finding(values, 0.01) == found


def test_three_values_are_needed_for_a_bootstrap_and_two_for_a_t_interval() -> None:
    assert bootstrap_interval([0.1, 0.2]) is None
    assert t_interval([0.1]) is None
    assert paired_t([0.1, 0.1]) is None
    assert bootstrap_interval([0.1, 0.1, 0.1]) is None


def test_a_bootstrap_of_three_values_is_one_of_its_ten_means_and_repeats_itself() -> None:
    values = [0.1, 0.25, 0.7]
    means = [np.mean(drawn) for drawn in itertools.combinations_with_replacement(values, 3)]
    for bound in bootstrap_interval(values):
        assert min(abs(bound - mean) for mean in means) < 1e-12
    statistics._bootstrap.cache_clear()
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_of_many_values_the_bootstrap_agrees_with_the_t_interval() -> None:
    values = np.random.default_rng(3).normal(0.1, 1, 400)
    assert bootstrap_interval(values) == pytest.approx(t_interval(values), abs=0.02)


@pytest.mark.parametrize(("n", "bootstrap"), [(3, 0.73), (4, 0.80), (5, 0.84), (15, 0.92)])
def test_intervals_cover_what_their_docstring_says(n: int, bootstrap: float) -> None:
    """Of 500 draws of normal differences; the standard error of a coverage of .8 is .018."""
    draws = np.random.default_rng(n).normal(0.3, 1, (500, n))
    covered = [[low <= 0.3 <= high for low, high in (t_interval(d), bootstrap_interval(d))] for d in draws]
    by_t, by_bootstrap = np.mean(covered, axis=0)
    assert by_t == pytest.approx(0.95, abs=0.03)
    assert by_bootstrap == pytest.approx(bootstrap, abs=0.05)


def test_the_t_test_is_right_as_often_as_it_says_where_there_is_nothing() -> None:
    draws = np.random.default_rng(7).normal(0, 1, (4000, 3))
    assert np.mean([paired_t(d) < 0.05 for d in draws]) == pytest.approx(0.05, abs=0.012)
