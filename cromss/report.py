"""`python -m cromss.report DIR`: one self-contained HTML page over a run folder, from its files alone.

Whatever a run has not written (yet) is left out of the page; a file that cannot be read is named at its end. The sections
are in `cromss.pages`. `python -m cromss.report --reproduce RUN` prints the commands that repeat one run instead.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cromss.cli import verb
from cromss.journal import read_sweep, read_trials


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and print its path. A folder without a run ends with status 2."""
    parser = argparse.ArgumentParser(prog="cromss report", description="one HTML page over a run folder")
    parser.add_argument(
        "folder", metavar="DIR", type=Path, nargs="?", help="the --out of a sweep, a pretraining or a transfer"
    )
    parser.add_argument("--out", type=Path, help="the page to write (default: DIR/report.html); with --reproduce: a folder "
                        "for the configuration and the repeated run")  # fmt: skip
    parser.add_argument("--track", action="store_true", help="also send to MLflow what it still lacks")
    parser.add_argument("--reproduce", metavar="RUN", help="print what repeats a run: a run folder, a trial OUT/trials/<key>, "
                        "or the id or name of an MLflow run (of DIR, or of --tracking-uri)")  # fmt: skip
    parser.add_argument("--tracking-uri", metavar="URI", help="the MLflow store of RUN (default: that of DIR)")
    args = parser.parse_args(argv)
    if args.reproduce:
        from cromss.pages.reproduction import reproduce

        print(reproduce(args.reproduce, out=args.out, folder=args.folder, uri=args.tracking_uri))
        return 0
    if args.folder is None:
        raise ValueError("DIR: give the --out of a sweep, a pretraining or a transfer")
    page = write(args.folder, args.out)
    print(page)
    return 0 if not args.track or _track(args.folder, page) else 1


def _track(folder: Path, page: Path) -> bool:
    from cromss.tracking import Sink
    from cromss.trials.ranking import aggregates

    sink = Sink(folder)
    return sink.sync(
        aggregates(read_trials(folder), read_sweep(folder).get("metric", "mean")), final=True
    ) and sink.attach(page)


def write(folder: str | Path, page: str | Path | None = None) -> Path:
    """Render `folder` into `page` (default `folder/report.html`); its path.

    Raises ValueError for a folder that holds no run and for a page that cannot be written.
    """
    from cromss.trials.tables import write as write_tables

    page = Path(page or Path(folder) / "report.html")
    with contextlib.suppress(OSError):  # a folder that may only be read has the tables of the sweep's end
        write_tables(folder)
    html = render(folder)
    try:
        page.write_text(html)
    except OSError as error:
        raise ValueError(f"{page}: the report cannot be written ({error.strerror})") from None
    return page


def render(folder: str | Path) -> str:
    """The page as text. Raises ValueError for a folder that holds no run."""
    import jinja2

    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give the --out of a sweep, a pretraining or a transfer")
    if not read_trials(folder):
        raise ValueError(f"{folder}: holds no run: neither trial.json nor trials/<key>/")
    templates = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    engine = jinja2.Environment(loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return engine.get_template("report.html").render(contents(folder))


def contents(folder: Path) -> dict[str, Any]:
    """What the template is filled with: a key per section, empty where its files are not there."""
    from cromss.pages import costs, labels, land, learning, origin, parameters, scores, tables
    from cromss.pages.run import Run

    run = Run(folder)
    made = tables.tables(run)
    return {
        "kind": "sweep" if run.sweep else "run",
        "title": run.sweep.get("space") or folder.resolve().name,
        "question": run.sweep.get("question", ""),
        "answer": scores.answer(run),
        "headline": scores.headline(run),
        "states": run.states,
        "rendered": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "ranking": scores.table(run),
        "ranking_chart": scores.chart(run),
        "differences": None if made else scores.differences(run),  # the tables have them, tested and corrected
        "tables": made,
        "space": parameters.space(run),
        "response": parameters.response(run),
        "noise": labels.noise(run),
        "over_training": labels.over_training(run),
        "detection": labels.detection(run),
        "film": labels.film(run),
        "histograms": labels.histograms(run),
        "land": land.land(run),
        "tests": list(land.tests(run)),
        "stores": list(land.stores(run)),
        "curves": learning.curves(run),
        "trajectories": learning.trajectories(run),
        "class_iou": list(scores.class_iou(run)),
        "confusions": list(scores.confusions(run)),
        "costs": costs.costs(run),
        "failed": [trial for trial in run.trials if trial["status"] == "failed"],
        "origin": origin.origin(run),
        "unreadable": run.unreadable,  # last: the sections above fill it
    }


if __name__ == "__main__":
    sys.exit(main())
