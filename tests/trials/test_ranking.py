import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from records import trial

from cromss.trials import ranking
from cromss.trials.ranking import Cell, difference, rank, verdict


def cell(*values: float) -> Cell:
    return Cell(dict(enumerate(values)), 1)


def test_the_unit_is_the_seed_not_the_repeat() -> None:
    """Seeds .4 and .6 (each over two repeats): mean .5, std of two seeds = .1414, not that of four numbers."""
    (row,) = rank([trial("midF", 0, {"s2": [0.3, 0.5]}), trial("midF", 1, {"s2": [0.55, 0.65]})], "s2")
    found = row.cells["s2", "frozen"]
    assert found.seeds == {0: pytest.approx(0.4), 1: pytest.approx(0.6)}
    assert (found.mean, found.std) == (pytest.approx(0.5), pytest.approx(math.sqrt(0.02)))
    assert ranking.counts(found) == "2 seeds x 2 repeats"
    assert ranking.percent(found) == "50.0 ± 14.1"


def test_one_seed_has_no_deviation() -> None:
    (row,) = rank([trial("midF", 0, {"s2": [0.3, 0.5]})], "s2")
    assert row.score.std is None
    assert ranking.percent(row.score) == "40.0"


def test_the_rank_follows_the_metric_and_the_unjudged_come_last() -> None:
    trials = [trial("a", 0, {"s1": [0.5], "s2": [0.2]}), trial("b", 0, {"s1": [0.2], "s2": [0.6]}),
              trial("s2 only", 0, {"s2": [0.9]})]  # fmt: skip
    assert [row.name for row in rank(trials, "s1")] == ["a", "b", "s2 only"]
    assert [row.name for row in rank(trials, "s2")] == ["s2 only", "b", "a"]
    assert [row.name for row in rank(trials, "mean")] == ["b", "a", "s2 only"]
    assert rank(trials, "mean")[-1].score is None


def test_single_modal_encoders_are_one_row_of_two_columns() -> None:
    trials = [
        trial("single-modal", seed, {modality: [0.3 + seed]}, **{"model.fusion.modality": modality})
        for seed in (0, 1)
        for modality in ("s1", "s2")
    ]
    (row,) = rank(trials)
    assert set(row.cells) == {("s1", "frozen"), ("s2", "frozen")}
    assert list(row.score.seeds) == [0, 1]


def test_an_arm_is_split_by_the_parameters_that_vary_within_it() -> None:
    trials = [
        trial("CromSS-midF", seed, {"s2": [0.5]}, **{"objective.alpha.end": end, "train.seed": seed})
        for seed in (0, 1)
        for end in (0.3, 0.5)
    ] + [trial("midF", 0, {"s2": [0.4]}, **{"objective.alpha.end": 0.5})]
    groups = ranking.configurations(trials)
    assert {name: len(group) for name, group in groups.items()} == {
        "CromSS-midF [alpha.end=0.3]": 2,
        "CromSS-midF [alpha.end=0.5]": 2,
        "midF": 1,
    }


@given(
    st.lists(st.floats(-1, 1), min_size=2, max_size=12).filter(lambda values: np.std(values) > 1e-6),
    st.floats(-1, 1),
)
def test_the_interval_is_the_paired_t_interval_of_scipy(values: list[float], base: float) -> None:
    delta = difference(cell(*(base + v for v in values)), cell(*[base] * len(values)))
    oracle = scipy.stats.ttest_rel([base + v for v in values], [base] * len(values)).confidence_interval(0.95)
    assert delta.interval == pytest.approx((oracle.low, oracle.high), rel=1e-6, abs=1e-9)


def test_only_common_seeds_are_compared() -> None:
    delta = difference(Cell({0: 0.5, 1: 0.6, 7: 9.0}, 1), Cell({0: 0.4, 1: 0.4, 8: 9.0}, 1))
    assert delta.values == {0: pytest.approx(0.1), 1: pytest.approx(0.2)}
    assert difference(Cell({0: 0.5}, 1), Cell({1: 0.5}, 1)) is None


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (cell(0.500, 0.510, 0.505), cell(0.501, 0.507, 0.506), "difference within seed noise (3 seeds, "),
        (cell(0.50, 0.51, 0.52), cell(0.40, 0.42, 0.41), "higher by 10.0 points [+7.5, +12.5] (3 seeds)"),
        (cell(0.40, 0.42, 0.41), cell(0.50, 0.51, 0.52), "lower by 10.0 points [−12.5, −7.5] (3 seeds)"),
        (cell(0.50), cell(0.40), "10.0 points higher, but one seed says nothing about noise"),
        (cell(0.5, 0.6), cell(0.4, 0.5), "the same difference of +10.0 points in all 2 seeds: no interval"),
        (cell(0.5, 0.6), cell(0.5, 0.6), "no difference in any of 2 seeds"),
        (Cell({0: 0.5}, 1), Cell({1: 0.5}, 1), "not comparable: no common seed"),
    ],
)
def test_the_verdict_says_what_the_seeds_allow(a: Cell, b: Cell, words: str) -> None:
    assert verdict(a, b).startswith(words)


def test_a_verdict_of_two_arms_is_never_contradicted_by_its_reverse() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = cell(*rng.normal(0.5, 0.01, 4)), cell(*rng.normal(0.51, 0.01, 4))
        forth, back = verdict(a, b), verdict(b, a)
        assert ("noise" in forth) == ("noise" in back)
        assert ("higher" in forth) == ("lower" in back)


def test_the_ceiling_is_named_and_never_leads() -> None:
    rows = rank([trial("oracle", 0, {"s2": [0.9]}), trial("midF", 0, {"s2": [0.5]})], "s2")
    assert [row.label for row in rows] == ["oracle (ceiling)", "midF"]
    assert ranking.leader(rows).name == "midF"
    assert ranking.headline(rows, "s2")[0].startswith("midF leads with 50.0 %")


def test_cromss_is_always_set_against_its_own_baseline_and_no_pair_twice() -> None:
    arms = {"midF": 0.5, "CromSS-midF": 0.49, "random": 0.2, "CromSS-lateF": 0.45}
    trials = [trial(arm, s, {"s2": [score + s / 100]}) for arm, score in arms.items() for s in (0, 1)]
    found = [(a.name, b.name) for a, b in ranking.pairs(rank(trials, "s2"))]
    assert found == [("CromSS-midF", "midF"), ("midF", "CromSS-lateF"), ("midF", "random")]


def test_the_papers_table_is_typed_as_printed() -> None:
    """Sums of the eight rows as printed in Table 1, added up by hand per column."""
    means = {column: sum(cells[column][0] for cells in ranking.PAPER.values() if column in cells)
             for column in (("s1", "frozen"), ("s1", "finetuned"), ("s2", "frozen"), ("s2", "finetuned"))}  # fmt: skip
    assert [round(value, 2) for value in means.values()] == [236.15, 231.84, 314.98, 314.49]
    assert ranking.paper_text("cromss-midf", ("s2", "frozen")) == "42.89 ± 0.35"
    assert ranking.paper_text("DINO", ("s1", "frozen")) == ""


@pytest.mark.parametrize(("flag", "change", "applies"), [
    (True, {}, True), (False, {}, False), (True, {"head_depth": 5}, False), (True, {"scheme": "terramesh"}, False),
])  # fmt: skip
def test_the_papers_numbers_stand_only_beside_what_they_measure(flag: bool, change: dict, applies: bool) -> None:
    one = trial("midF", 0, {"s2": [0.5]})
    one["downstream"][0] |= change
    assert ranking.paper_applies({"paper_rows": flag}, [one]) == applies
    assert not ranking.paper_applies({"paper_rows": flag}, [])


def test_the_text_table_is_aligned_and_names_seeds_and_repeats() -> None:
    trials = [trial(arm, s, {"s1": [0.4], "s2": [0.5, 0.5]}) for arm in ("random", "CromSS-lateF") for s in (0, 1)]
    text = ranking.summary({"metric": "mean", "paper_rows": True}, trials)
    scores, differences = text.split("**Differences in mIoU**")
    for part in (scores, differences):
        assert len({len(line) for line in part.splitlines() if line.startswith("|")}) == 1
    assert "CromSS-lateF \N{MINUS SIGN} random" in differences
    assert "50.0 ± 0.0 † (paper 41.12 ± 0.11)" in text
    assert "2 x 1" in text


def test_aggregates_hold_the_mean_over_seeds_and_its_deviation() -> None:
    trials = [trial("midF", s, {"s2": [value]}, **{"optim.lr": 0.1}) for s, value in ((0, 0.4), (1, 0.6))]
    (found,) = ranking.aggregates(trials).values()
    assert found.metrics == {
        "test/s2/frozen/miou": pytest.approx(0.5),
        "test/s2/frozen/miou_std": pytest.approx(math.sqrt(0.02)),
        "test/s2/frozen/miou_low": pytest.approx(0.5 - 12.7062 * 0.1, abs=1e-4),
        "test/s2/frozen/miou_high": pytest.approx(0.5 + 12.7062 * 0.1, abs=1e-4),
        "score/miou": pytest.approx(0.5),
        "score/miou_std": pytest.approx(math.sqrt(0.02)),
        "score/miou_low": pytest.approx(0.5 - 12.7062 * 0.1, abs=1e-4),
        "score/miou_high": pytest.approx(0.5 + 12.7062 * 0.1, abs=1e-4),
    }
    assert (found.seeds, found.repeats, found.params) == (2, 1, {"arm": "midF", "optim.lr": 0.1})


def test_nothing_judged_is_said_so() -> None:
    assert ranking.summary({}, []) == "No trial was judged downstream."
    assert rank([trial("midF", 0, {})]) == []


def test_zero_shot_is_a_column_of_its_own_and_never_ranks() -> None:
    best, worst = trial("midF", 0, {"s2": [0.5]}), trial("CromSS-midF", 0, {"s2": [0.4]})
    worst["downstream"] += trial("", 0, {"s2": [0.9]}, mode="zero_shot")["downstream"]
    rows = rank([best, worst], "s2")
    assert [row.name for row in rows] == ["midF", "CromSS-midF"]
    assert [ranking.column_title(column) for column in ranking.columns(rows)] == ["S2 frozen", "S2 zero-shot"]
    assert "test/s2/zero_shot/miou" in ranking.aggregates([best, worst])["CromSS-midF"].metrics
    only = trial("midF", 0, {"s2": [0.5]}, mode="zero_shot")
    assert rank([only], "s2")[0].score is None


def test_a_third_modality_is_a_column_and_the_mean_is_of_what_every_row_has() -> None:
    three = trial("midF", 0, {"s1": [0.1], "s1d": [0.9], "s2": [0.3]}, **{"model.fusion.modalities": "three"})
    two = trial("midF", 0, {"s1": [0.2], "s2": [0.4]}, **{"model.fusion.modalities": "two"})
    rows = rank([three, two])
    assert [row.score.mean for row in rows] == [pytest.approx(0.3), pytest.approx(0.2)]
    assert ranking.column_title(("s1d", "frozen")) == "S1D frozen"
    alone = rank([three])
    assert alone[0].score.mean == pytest.approx(1.3 / 3)
    assert ranking.metric_title("mean", ranking.modalities_of(alone)) == "mean S1/S1D/S2"


def test_seeds_of_different_worlds_are_different_witnesses() -> None:
    trials = [trial("midF", seed, {"s2": [0.5]}, **{"world.seed": world}) for seed in (0, 1) for world in (7, 8)]
    (row,) = rank(trials, "s2")
    assert list(row.score.seeds) == ["0@7", "0@8", "1@7", "1@8"]


@pytest.mark.parametrize(
    ("name", "baseline"),
    [
        ("CromSS-midF", "midF"), ("Co-teaching-midF", "midF"), ("oracle-lateF", "lateF"), ("midF", None),
        ("single-modal", None), ("SCE-midF [rate=0.4]", "midF [rate=0.4]"), ("CromSS-lateF [alpha.end=0.3]", "lateF"),
    ],
)  # fmt: skip
def test_every_method_has_its_own_baseline(name: str, baseline: str | None) -> None:
    assert ranking.baseline(name, ["midF", "lateF", "single-modal", "midF [rate=0.4]"]) == baseline
