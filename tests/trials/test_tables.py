"""The table of a sweep: what is bold, what is corrected, and that it says the same in four languages."""

import csv
import html.parser
import io
import json

import numpy as np
import pytest
import scipy.stats
from records import trial

from cromss.trials import tables
from cromss.trials.statistics import holm
from cromss.trials.table_formats import csv as as_csv
from cromss.trials.table_formats import html as as_html
from cromss.trials.table_formats import latex, markdown
from cromss.trials.tables import AMONG, BOLD

SCORES = {
    "random": [0.28, 0.29, 0.27], "midF": [0.50, 0.51, 0.505], "CromSS-midF": [0.60, 0.615, 0.604],
    "oracle-midF": [0.90, 0.91, 0.92], "SCE_0.5-midF": [0.40, 0.41, 0.40],
}  # fmt: skip


def trials_of(scores: dict[str, list[float]], s1: float = 0.4) -> list[dict]:
    """S2 as given; on S1 every arm but random is the same within noise."""
    rng = np.random.default_rng(5)
    return [
        trial(arm, seed, {"s1": [(0.1 if arm == "random" else s1) + rng.normal(0, 0.01)], "s2": [value]})
        for arm, values in scores.items() for seed, value in enumerate(values)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made() -> tables.Tables:
    return tables.tables({"space": "table1", "paper_rows": True}, trials_of(SCORES))


def standing(made: tables.Tables, arm: str, modality: str) -> str:
    return made.tables[0].scores[arm, (modality, "frozen")].standing


def test_bold_is_the_best_that_beats_every_other_row_and_the_ceiling_takes_no_part(made) -> None:
    assert {arm: standing(made, arm, "s2") for arm in SCORES} == {
        "random": "", "midF": "", "SCE_0.5-midF": "", "CromSS-midF": BOLD, "oracle-midF": "",
    }  # fmt: skip


def test_what_the_seeds_cannot_tell_from_the_best_shares_its_mark_and_nothing_is_bold(made) -> None:
    assert {arm: standing(made, arm, "s1") for arm in SCORES} == {
        "random": "", "midF": AMONG, "SCE_0.5-midF": AMONG, "CromSS-midF": AMONG, "oracle-midF": "",
    }  # fmt: skip


def test_one_row_or_one_seed_is_never_bold() -> None:
    for scores in ({"midF": [0.5, 0.6, 0.7]}, {"midF": [0.5], "random": [0.1]}, {"a": [0.5, 0.6], "b": [0.4, 0.5]}):
        found = tables.tables({}, trials_of(scores)).tables[0]
        assert BOLD not in {score.standing for score in found.scores.values()}


def test_equal_arms_are_seldom_bold() -> None:
    """Twenty tables of four arms that are all the same: each column has a best, none of them is one."""
    rng = np.random.default_rng(0)
    bold = 0
    for _ in range(20):
        scores = {arm: list(rng.normal(0.5, 0.01, 3)) for arm in ("midF", "lateF", "CromSS-midF", "CromSS-lateF")}
        trials = [trial(arm, s, {"s2": [v]}) for arm, values in scores.items() for s, v in enumerate(values)]
        bold += sum(score.standing == BOLD for score in tables.tables({}, trials, ["miou"]).tables[0].scores.values())
    assert bold <= 1


def test_methods_are_compared_with_their_baseline_and_everything_with_random(made) -> None:
    assert made.tables[0].pairs == [
        ("SCE_0.5-midF", "midF"), ("CromSS-midF", "midF"), ("oracle-midF", "midF"),
        ("midF", "random"), ("SCE_0.5-midF", "random"), ("CromSS-midF", "random"), ("oracle-midF", "random"),
    ]  # fmt: skip


def test_p_is_scipys_paired_t_test_corrected_over_the_whole_table(made) -> None:
    table = made.tables[0]
    raw = []
    for one in table.comparisons:
        a, b = (list(table.scores[name, one.column].cell.seeds.values()) for name in (one.a, one.b))
        raw.append(scipy.stats.ttest_rel(a, b).pvalue)
    assert [one.holm for one in table.comparisons] == pytest.approx(holm(raw))
    assert len(raw) == 7 * 2
    assert {one.sign_flip for one in table.comparisons if one.column[0] == "s2"} == {0.25}


def test_below_the_table_stands_what_it_rests_on(made) -> None:
    notes = " ".join(made.notes)
    for said in ("over 3 seeds (independent pretrainings), each seed the mean of 1 downstream runs", "head_depth 3",
                 "cannot give a p below 0.25 with 3 pairs", "about 73 times in 100", "over the 14 tests",
                 "Bold: the best of its column and significantly better than every other row"):  # fmt: skip
        assert said in notes


def test_the_preset_is_named_with_what_was_set_by_hand() -> None:
    from cromss.config import PRESETS, resolve

    layers = PRESETS["authors-code"], {"optim": {"epochs": 150}}
    records = [one | {"config": resolve(*layers, {"seed": i}).model_dump(mode="json")}
               for i, one in enumerate(trials_of({"midF": [0.5, 0.6]}))]  # fmt: skip
    assert "Preset authors-code with optim.epochs=150." in tables.tables({}, records).notes[0]


def test_one_seed_tells_nothing_and_so_marks_nothing() -> None:
    found = tables.tables({}, trials_of({"midF": [0.5], "random": [0.1]})).tables[0]
    assert {score.standing for score in found.scores.values()} == {""}


def test_what_two_rows_share_in_brackets_is_said_once() -> None:
    records = [one | {"parameters": {"world.places": 96 + 288 * (one["seed"] % 2)}}
               for one in trials_of({"midF": [0.5, 0.6], "CromSS-midF": [0.5, 0.7]})]  # fmt: skip
    text = markdown(tables.tables({}, records))
    assert "CromSS-midF \N{MINUS SIGN} midF [places=384]" in text


def test_markdown_latex_and_html_bear_the_same_marks(made) -> None:
    text = markdown(made)
    assert "**60.6 ± 0.8** (paper 42.89 ± 0.35)" in text
    assert text.count("†") == 3 + 1  # three rows on S1, and the note
    tex = latex(made)
    assert r"\textbf{60.6 $\pm$ 0.8} (paper 42.89 $\pm$ 0.35)" in tex
    assert r"SCE\_0.5-midF" in tex
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert tex.count(rule) == 2
    assert all(
        line.count("&") == 3 - ("random" in line and "$-$" in line) for line in tex.splitlines() if "random &" in line
    )
    page = as_html(made)
    assert "<strong>60.6 ± 0.8</strong> <small>paper 42.89 ± 0.35</small>" in page
    assert Closed(page).open == []


class Closed(html.parser.HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_names_cannot_break_out_of_their_cell() -> None:
    made = tables.tables({"space": '"><script>'}, trials_of({"<b>&": [0.1, 0.2, 0.3], "a_%{": [0.2, 0.2, 0.4]}))
    assert "<b>" not in as_html(made)
    assert "<script>" not in as_html(made)
    assert r"a\_\%\{" in latex(made)


def test_the_csv_holds_every_score_and_every_test(made) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(made))))
    (best,) = (one for one in lines if (one["kind"], one["row"], one["modality"]) == ("score", "CromSS-midF", "s2"))
    assert float(best["mean"]) == pytest.approx(np.mean(SCORES["CromSS-midF"]), rel=1e-5)
    assert (best["standing"], best["seeds"], best["repeats"]) == ("bold", "3", "1")
    (delta,) = (one for one in lines if (one["row"], one["against"], one["modality"]) == ("CromSS-midF", "midF", "s2"))
    oracle = scipy.stats.ttest_rel(SCORES["CromSS-midF"], SCORES["midF"])
    assert float(delta["p_t"]) == pytest.approx(oracle.pvalue, rel=1e-4)
    assert float(delta["t_low"]) == pytest.approx(oracle.confidence_interval(0.95).low, rel=1e-4)
    assert float(delta["p_sign_flip"]) == 0.25
    assert float(delta["bootstrap_low"]) <= float(delta["mean"]) <= float(delta["bootstrap_high"])


def test_the_files_depend_on_the_results_alone(tmp_path) -> None:
    """Neither on the order of the trials nor on when, where and for how long they ran."""
    written = []
    for name, order in (("first", 1), ("second", -1)):
        out = tmp_path / name
        for number, one in enumerate(trials_of(SCORES)[::order]):
            folder = out / "trials" / f"{number:02d}"
            folder.mkdir(parents=True)
            (folder / "trial.json").write_text(json.dumps(one | {"seconds": number, "command": str(out)}))
        (out / "sweep.json").write_text(json.dumps({"space": "table1", "created": name, "spent": name}))
        written.append([path.read_bytes() for path in tables.write(out)])
    assert written[0] == written[1]
    assert len(written[0]) == 4


def test_zero_shot_says_which_map_and_who_has_none() -> None:
    wanted = {"config": {"transfer": {"modes": ["frozen", "zero_shot"]}, "pretraining": {"kind": "pretrain"}}}
    random = {"config": {**wanted["config"], "pretraining": {"kind": "random"}}}
    trials = [trial("random", s, {"s2": [0.2]}) | random for s in (0, 1)]
    for seed in (0, 1):
        one = trial("midF", seed, {"s2": [0.4]}) | wanted
        one["downstream"] += [{"modality": "s2", "mode": "zero_shot", "repeat": 0, "miou": 0.3, "scheme": "dfc2020",
                               "own_scheme": "dynamic-world", "missing": ["wetland"]}]  # fmt: skip
        trials.append(one)
    notes = " ".join(tables.tables({}, trials).notes)
    assert "(dynamic-world to dfc2020); no class of its own means wetland, which it therefore scores 0 in." in notes
    assert "No zero-shot: random (random weights)." in notes
    assert "over 2 seeds (independent pretrainings), each seed the mean of 1 downstream runs" in notes


def test_nothing_judged_writes_nothing(tmp_path) -> None:
    assert tables.write(tmp_path) == []
