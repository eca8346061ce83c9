import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path

import fake_out
import numpy as np
import pytest

from cromss import report
from cromss.pages import costs, labels, land, learning, parameters, scores, tables
from cromss.pages.run import Run


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arms = ("random", "midF", "CromSS-midF", "oracle")
    return fake_out.make(tmp_path_factory.mktemp("sweep"), arms=arms, seeds=2, repeats=2, epochs=4, size=8)


@pytest.fixture(scope="module")
def page(out: Path) -> str:
    assert report.main([str(out)]) == 0
    return (out / "report.html").read_text()


class Words(html.parser.HTMLParser):
    """The text of a page, and whether every tag was closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.stack, self.sources = "", [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" not in self.stack:
            self.text += data


def test_the_page_stands_alone_and_is_well_formed(page: str) -> None:
    words = Words(page)
    assert words.stack == []
    assert words.sources
    assert all(source.startswith("data:image/") for source in words.sources)
    assert "<script" not in page
    assert "url(" not in page


def test_every_section_is_there(page: str) -> None:
    sections = re.findall(r"<h2>(.*?)</h2>", page)
    assert sections == [
        "Ranking", "Tables", "Do the weights find the wrong labels?", "What the network saw and learned",
        "The same test patches, arm by arm", "Learning", "Class by class", "What it cost", "Failed trials",
        "Where this comes from",
    ]  # fmt: skip


def test_the_page_answers_the_question_from_the_numbers(page: str, out: Path) -> None:
    from cromss.journal import read_sweep, read_trials
    from cromss.trials import answers, ranking

    text = " ".join(Words(page).text.split())
    sweep, trials = read_sweep(out), read_trials(out)
    rows = ranking.rank(trials)
    assert answers.answer(sweep, trials) in text
    assert text.index(answers.answer(sweep, trials)) < text.index("Ranking")
    assert "Does selecting labels by cross-modal confidence make better encoders?" in text
    assert all(sentence in text for sentence in ranking.headline(rows))
    for row in rows:
        assert row.label in text
        assert ranking.percent(row.score) in text
    assert "paper 42.89 ± 0.35" in text
    assert "2 seeds x 2 repeats" in text
    assert "python -m cromss.sweep cromss" in text


def test_only_an_interval_without_zero_is_bold(out: Path, tmp_path: Path) -> None:
    table = scores.differences(Run(out))
    for line in table["lines"]:
        for cell in line["cells"]:
            bounds = [float(b.replace("\N{MINUS SIGN}", "-")) for b in cell["interval"].strip("[]").split(",")]
            assert cell["outside"] == (bounds[0] > 0 or bounds[1] < 0)
    (tmp_path / "out").mkdir()
    for path in (*out.glob("trials"), out / "sweep.json"):  # a folder whose tables were not written
        (tmp_path / "out" / path.name).symlink_to(path)
    html_page = report.render(tmp_path / "out")
    bold = sum(cell["outside"] for line in table["lines"] for cell in line["cells"])
    section = html_page.partition("Paired differences</h2>")[2].partition("</section>")[0]
    assert section.count("<b>") == bold


def test_what_a_trial_says_is_text_not_markup(page: str) -> None:
    assert "&lt;optim.lr=5&gt;" in page
    assert "<optim.lr" not in page


def test_a_sweep_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "trials/a").mkdir(parents=True)
    text = Words(report.render(tmp_path)).text
    assert "1 running" in text


def test_damaged_pictures_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    out = fake_out.make(tmp_path / "out", arms=("midF",), seeds=1, repeats=1, epochs=2, size=8, failed=False)
    (out / "trials/midf-0/panels.npz").write_bytes(b"PK\x03\x04 torn")
    evil = {"rgb": np.array([object()], dtype=object)}
    np.savez(out / "trials/midf-0/transfer/s1-frozen-0/panels.npz", **evil)
    text = " ".join(Words(report.render(out)).text.split())
    assert "Could not be read: trials/midf-0/panels.npz" in text
    assert "Object arrays cannot be loaded" in text
    assert "Test patches, S2 frozen" in text


def test_a_single_pretraining_has_a_page(out: Path) -> None:
    page = report.render(out / "trials/midf-0")
    assert "alpha: share of the labels" not in page  # it is in the picture
    assert "The schedules that were followed" in page
    assert "Trials: 1 done." in page


def test_without_real_dfc2020_no_number_of_the_paper_is_shown(tmp_path: Path) -> None:
    out = fake_out.make(tmp_path / "out", arms=("midF",), seeds=1, repeats=1, epochs=2, size=8)
    sweep = json.loads((out / "sweep.json").read_text()) | {"paper_rows": False}
    (out / "sweep.json").write_text(json.dumps(sweep))
    assert "paper" not in Words(report.render(out)).text


@pytest.mark.parametrize("case", ["missing", "empty", "unwritable"])
def test_a_bad_folder_is_one_line_and_status_2(
    case: str, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = {"missing": [str(tmp_path / "no")], "empty": [str(tmp_path)],
            "unwritable": [str(out), "--out", str(tmp_path / "no/report.html")]}[case]  # fmt: skip
    assert report.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"report: {tmp_path}")


def test_the_report_needs_no_mlflow_and_no_ray(out: Path) -> None:
    code = (
        "import sys; from cromss import report; report.render(sys.argv[1]);"
        "print([m for m in ('mlflow', 'ray', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_costs_no_heavy_import() -> None:
    code = "import sys, cromss.report; print([m for m in ('matplotlib', 'scipy', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_independent_map_is_shown_in_its_own_scheme(tmp_path: Path) -> None:
    out = fake_out.make(tmp_path / "out", arms=("midF",), seeds=1, repeats=1, epochs=2, size=8, failed=False)
    path = out / "trials/midf-0/panels.npz"
    with np.load(path) as archive:
        data = {key: archive[key] for key in archive.files if key != "clean"}
    np.savez(path, **data, reference=np.full_like(data["label"], 7), reference_scheme=np.array("terramesh"))
    run = Run(out)
    (column,) = land.reference(run, run.arrays(path), None)
    assert column.scheme.classes[7] == "rangeland"
    assert land.land(run)
    assert run.unreadable == []


# --- parameters ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(
        fake_out.space(tmp_path_factory.mktemp("space"), arms=("midF", "CromSS-midF"), rates=(0.0, 0.3), seeds=1)
    )


def test_optuna_finds_the_parameter_that_was_made_to_matter(space: Run) -> None:
    """The fake scores fall by 9 points with the noise rate and by nothing with the ramp."""
    found = parameters.points(space)
    columns = parameters.varied(found)
    assert set(columns) == {"arm", "world.noise.rate", "optim.lr", "objective.alpha.ramp.kind"}
    shares = {key: np.mean(values) for key, values in parameters._importance(columns, found).items()}
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    assert max(shares, key=shares.get) == "world.noise.rate"
    assert shares["objective.alpha.ramp.kind"] < 0.05


def test_the_space_has_its_pictures_and_a_curve_for_every_number(space: Run) -> None:
    made = parameters.space(space)
    assert set(made) == {"parallel", "importance"}
    assert [figure["caption"].split(":")[0] for figure in parameters.response(space)] == [
        "Response to optim.lr", "Response to world.noise.rate",
    ]  # fmt: skip


def test_too_few_trials_for_importance_are_said_so(tmp_path: Path) -> None:
    out = fake_out.space(tmp_path / "out", arms=("midF",), rates=(0.3,), seeds=1)
    made = parameters.space(Run(out))
    assert made["note"].startswith(
        "Too few trials to tell which parameter matters: 6 configurations are judged, 2 param"
    )
    assert "importance" not in made
    assert parameters.space(Run(fake_out.make(tmp_path / "two", arms=("midF", "random"), seeds=1, size=8))) == {}


def test_configurations_of_one_schedule_share_a_line(space: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    monkeypatch.setattr(space.plot, "trajectories", lambda schedules, xlabel: drawn.update(schedules) or space.plot.ranking({
        "x": {"midF": space.plot.Dot([1.0], 1.0, None)}}, space.plot.colours(["midF"])))  # fmt: skip
    assert learning.trajectories(space)
    for title, end in (
        ("alpha: share of the labels that count fully", 0.3),
        ("gamma: share of the teachers' pixels", 1.0),
    ):
        assert set(drawn[title]) == {
            "ramp.kind=linear (12 configurations)",
            "ramp.kind=exponential (12 configurations)",
        }
        assert drawn[title]["ramp.kind=linear (12 configurations)"][1][-1] == pytest.approx(end)


# --- costs, labels, tables ----------------------------------------------------------------------------------------------


def test_costs_are_worked_by_hand(tmp_path: Path) -> None:
    """Two trials of one core: 30 + 6 s and 66 + 6 s; the ledger of the sweep says 0.04 core-hours, 144 s."""
    out = fake_out.make(tmp_path / "out", arms=("midF",), seeds=2, repeats=1, epochs=2, size=8, failed=False)
    for seed, pretraining in ((0, 30.0), (1, 66.0)):
        path = out / f"trials/midf-{seed}/trial.json"
        record = json.loads(path.read_text())
        record["clock"] |= {"pretraining": pretraining, "judging": 6.0}
        path.write_text(json.dumps(record))
    entry = {"unit": "core-hours", "event": "start", "trial": "a", "attempt": "a"}
    lines = [entry | {"time": 0.0, "held": 1.0}, entry | {"time": 144.0, "held": 0.0, "event": "end"}]
    (out / "spending.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = costs.costs(Run(out))
    (line,) = found["lines"]
    assert (line["trials"], line["pretraining"], line["judging"]) == (2, "48.0 ± 25.5", "6.0 ± 0.0")
    assert (line["told"], line["share"], found["whole"], found["rest"]) == ("0.03", "75.0 %", "0.04", "0.01")
    assert [(one["seed"], one["share"]) for one in found["trials"]] == [(1, "50.0 %"), (0, "25.0 %")]


def test_modalities_are_those_of_the_data(tmp_path: Path) -> None:
    out = fake_out.make(tmp_path / "out", arms=("CromSS-midF",), seeds=1, repeats=1, epochs=3, size=8, failed=False)
    record = json.loads((path := out / "trials/cromss-midf-0/trial.json").read_text())
    record["noise"]["s1d"] = record["noise"]["s1"]
    path.write_text(json.dumps(record))
    run = Run(out)
    assert [line["modality"] for line in labels.noise(run)["lines"]] == ["S2", "S1", "S1D"]
    assert len(labels.histograms(run)) == 3
    assert labels.over_training(run)["caption"].startswith("Over training")
    assert labels.film(run)["caption"].startswith("CromSS-midF, seed 0. The weights of the same validation patches")


def test_tables_keep_numbers_and_lose_whatever_acts(tmp_path: Path) -> None:
    out = fake_out.make(tmp_path / "out", arms=("midF",), seeds=1, repeats=1, epochs=2, size=8, failed=False)
    evil = (
        "<section><h3>mIoU</h3><table onclick='x()'><tr><th colspan=2>a &lt; b<script>alert(1)</script></th>"
        "<td><img src=x onerror=y><strong>42.1</strong></td></tr></table><p>note</section>"
    )
    (out / "table.html").write_text(evil)
    markup = tables.tables(Run(out))
    words = Words(markup)
    assert words.stack == []
    assert words.sources == []
    assert "alert" not in markup
    assert "onclick" not in markup
    assert '<th colspan="2">a &lt; b</th>' in markup
    assert "<strong>42.1</strong>" in markup
