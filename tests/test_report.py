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
        "Ranking", "Paired differences", "Do the weights find the wrong labels?", "What the network saw and learned",
        "The same test patches, arm by arm", "Learning", "Class by class", "Failed trials", "Where this comes from",
    ]  # fmt: skip


def test_the_page_answers_the_question_from_the_numbers(page: str, out: Path) -> None:
    from cromss.journal import read_trials
    from cromss.trials import ranking

    text = " ".join(Words(page).text.split())
    rows = ranking.rank(read_trials(out))
    assert "Does selecting labels by cross-modal confidence make better encoders?" in text
    assert all(sentence in text for sentence in ranking.headline(rows))
    for row in rows:
        assert row.label in text
        assert ranking.percent(row.score) in text
    assert "paper 42.89 ± 0.35" in text
    assert "2 seeds x 2 repeats" in text
    assert "python -m cromss.sweep cromss" in text


def test_only_an_interval_without_zero_is_bold(out: Path) -> None:
    table = report._Run(out).differences()
    for line in table["lines"]:
        for cell in line["cells"]:
            bounds = [float(b.replace("\N{MINUS SIGN}", "-")) for b in cell["interval"].strip("[]").split(",")]
            assert cell["outside"] == (bounds[0] > 0 or bounds[1] < 0)
    html_page = report.render(out)
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
    assert "The schedule that midF (seed 0) followed." in page
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
    run = report._Run(out)
    (column,) = run._reference(run._load(path), None)
    assert column.scheme.classes[7] == "rangeland"
    assert run.land()
    assert run.unreadable == []
