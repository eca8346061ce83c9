"""`python -m cromss.report DIR`: one self-contained HTML page over a run folder, from its files alone.

Whatever a run has not written (yet) is left out of the page; a file that cannot be read is named at its end.
"""

import argparse
import importlib.metadata
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cromss.cli import verb
from cromss.journal import Entry, read_journal, read_sweep, read_trials

ARMS = 7  # in one chart: as many as there are colours
CHARTS = {"val/loss": "Validation loss (unweighted)", "train/loss": "Training loss (weighted: not comparable)"}
MODALITY = {"s1": "S1", "s2": "S2"}
PANELS = 6  # rows


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and print its path. A folder without a run ends with status 2."""
    parser = argparse.ArgumentParser(prog="cromss report", description="one HTML page over a run folder")
    parser.add_argument("folder", metavar="DIR", type=Path, help="the --out of a sweep, a pretraining or a transfer")
    parser.add_argument("--out", type=Path, help="the page to write; default: DIR/report.html")
    parser.add_argument("--track", action="store_true", help="also send to MLflow what it still lacks")
    args = parser.parse_args(argv)
    page = write(args.folder, args.out)
    print(page)
    if args.track:
        from cromss.tracking import Sink
        from cromss.trials.ranking import aggregates

        sink = Sink(args.folder)
        return 0 if sink.sync(aggregates(read_trials(args.folder)), final=True) and sink.attach(page) else 1
    return 0


def write(folder: str | Path, page: str | Path | None = None) -> Path:
    """Render `folder` into `page` (default `folder/report.html`); its path.

    Raises ValueError for a folder that holds no run and for a page that cannot be written.
    """
    page = Path(page or Path(folder) / "report.html")
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
    return engine.get_template("report.html").render(_Run(folder).contents())


PORTRAIT = {
    "classes": "Classes by season: the k-th acquisition of every place in time order.",
    "histograms": "Pixels per band on the axis of the 8-bit codes (mean ± 2 std) and in physical units.",
    "map": "Where the places lie.",
    "contact_sheet": "Patches drawn at random, as they are stored.",
}


class _Run:
    """The contents of one page; every method is one section, empty when its files are not there."""

    def __init__(self, folder: Path) -> None:
        from cromss import plot
        from cromss.trials import ranking

        self.folder, self.plot, self.ranking = folder, plot, ranking
        self.sweep, self.trials = read_sweep(folder), read_trials(folder)
        self.metric = self.sweep.get("metric", "mean")
        self.rows = ranking.rank(self.trials, self.metric)
        self.columns = ranking.columns(self.rows)
        self.paper = ranking.paper_applies(self.sweep, self.trials)
        self.best = ranking.leader(self.rows)
        self.groups = ranking.configurations(self.trials)
        ranked = [row.name for row in self.rows]
        self.names = ranked + [name for name in self.groups if name not in ranked]
        self.palette = plot.colours(self.names)
        self.unreadable: list[str] = []

    def contents(self) -> dict[str, Any]:
        states = Counter(trial["status"] for trial in self.trials)
        return {
            "kind": "sweep" if self.sweep else "run",
            "title": self.sweep.get("space") or self.folder.resolve().name,
            "question": self.sweep.get("question", ""),
            "headline": self.ranking.headline(self.rows, self.metric) if self.rows else [],
            "states": [f"{states[s]} {s}" for s in ("done", "running", "stopped", "failed") if states[s]],
            "rendered": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "ranking": self.table(),
            "ranking_chart": self.ranking_chart(),
            "differences": self.differences(),
            "noise": self.noise(),
            "detection": self.detection(),
            "histograms": self.histograms(),
            "land": self.land(),
            "tests": list(self.tests()),
            "stores": list(self.stores()),
            "curves": self.curves(),
            "ramps": self.ramps(),
            "class_iou": list(self.class_iou()),
            "confusions": list(self.confusions()),
            "failed": [trial for trial in self.trials if trial["status"] == "failed"],
            "provenance": self.provenance(),
            "unreadable": self.unreadable,  # last: the sections above fill it
        }

    # --- scores -------------------------------------------------------------------------------------------------------

    def table(self) -> dict[str, Any] | None:
        if not self.rows:
            return None
        ranking = self.ranking
        best = {c: max((r.cells[c].mean for r in self.rows if c in r.cells and not r.is_ceiling), default=None)
                for c in self.columns}  # fmt: skip
        lines = []
        for row in self.rows:
            cells = [
                {"text": ranking.percent(row.cells.get(column)),
                 "paper": ranking.paper_text(row.arm, column) if self.paper else "",
                 "best": column in row.cells and not row.is_ceiling and row.cells[column].mean == best[column]}
                for column in self.columns
            ]  # fmt: skip
            size = ranking.counts(next(iter(row.cells.values()))) if row.cells else ""
            lines.append({"label": row.label, "colour": self.palette[row.name], "cells": cells, "size": size,
                          "score": ranking.percent(row.score), "leads": row is self.best})  # fmt: skip
        return {"header": [ranking.column_title(c) for c in self.columns], "lines": lines, "paper": self.paper,
                "metric": ranking.metric_title(self.metric), "heads": self._heads()}  # fmt: skip

    def _heads(self) -> str:
        judged = [one for trial in self.trials for one in trial["downstream"] if one.get("head")]
        return ", ".join(sorted({f"{one['head']}, head_depth {one.get('head_depth', '-')}" for one in judged}))

    def ranking_chart(self) -> dict[str, str] | None:
        scores: dict[str, dict[str, Any]] = {}
        for column in self.columns:
            arms = scores.setdefault(self.ranking.column_title(column), {})
            for row in self.rows[:20]:
                if cell := row.cells.get(column):
                    paper = self.ranking.PAPER.get(row.arm, {}).get(column) if self.paper else None
                    seeds = [100 * value for value in cell.seeds.values()]
                    std = 100 * cell.std if cell.std is not None else None
                    arms[row.name] = self.plot.Dot(seeds, 100 * cell.mean, std, paper[0] if paper else None)
        if not any(scores.values()):
            return None
        caption = "Dot and bar: mean ± standard deviation over seeds. Ticks: single seeds."
        caption += " Diamonds: the paper." * self.paper
        return self._figure(self.plot.ranking(scores, self.palette), caption, wide=True)

    def differences(self) -> dict[str, Any] | None:
        shown = [column for column in self.columns if column[1] == "frozen"] or self.columns
        lines = []
        for a, b in self.ranking.pairs(self.rows)[:12]:
            cells = [self._difference(a.cells.get(column), b.cells.get(column)) for column in shown]
            lines.append({"a": a.name, "b": b.label, "cells": [*cells, self._difference(a.score, b.score)]})
        header = [*map(self.ranking.column_title, shown), self.ranking.metric_title(self.metric)]
        return {"header": header, "lines": lines} if lines else None

    def _difference(self, a: Any, b: Any) -> dict[str, Any]:
        found = self.ranking.difference(a, b) if a and b else None
        if found is None:
            return {"text": "-", "interval": "", "outside": False}
        interval = found.interval
        return {
            "text": self.ranking.points(found.mean, sign=True),
            "interval": "[{}, {}]".format(*(self.ranking.points(x, sign=True) for x in interval)) if interval else
                        f"{len(found.values)} seed{'s' * (len(found.values) != 1)}: no interval",
            "outside": bool(interval) and not interval[0] <= 0 <= interval[1],
        }  # fmt: skip

    def class_iou(self) -> Iterator[dict[str, str]]:
        for modality, mode in self.columns:
            arms, classes = {}, []
            for row in self._chosen():
                judged = self._judged(row, modality, mode)
                if judged and (not classes or judged[0]["classes"] == classes):
                    classes = judged[0]["classes"]
                    arms[row.name] = [_mean(one["iou"][k] for one in judged) for k in range(len(classes))]
            if arms:
                title = self.ranking.column_title((modality, mode))
                figure = self.plot.class_iou(arms, classes, self.palette, title)
                yield self._figure(figure, "Mean over all seeds and repeats.")

    def confusions(self) -> Iterator[dict[str, str]]:
        import numpy as np

        for modality, mode in self.columns:
            judged = self._judged(self.best, modality, mode) if self.best else []
            matrices = [np.asarray(one["confusion"], float) for one in judged if one.get("confusion")]
            if matrices and all(matrix.shape == matrices[0].shape for matrix in matrices):
                title = f"{self.best.name}, {self.ranking.column_title((modality, mode))}"
                figure = self.plot.confusion(sum(matrices), judged[0]["classes"], title)
                yield self._figure(figure, "Per cent of each reference class, all test pixels of all runs.")

    def _judged(self, row: Any, modality: str, mode: str) -> list[dict[str, Any]]:
        found = [one for trial in row.trials for one in trial["downstream"]
                 if (one["modality"], one["mode"]) == (modality, mode)]  # fmt: skip
        return [one for one in found if one.get("classes") and len(one.get("iou") or ()) == len(one["classes"])]

    def _chosen(self) -> list[Any]:
        """The leader, what it is first compared with, and random: four arms are what a chart of bars bears."""
        paired = [row for pair in self.ranking.pairs(self.rows) for row in pair]
        wanted = sorted([self.best, *paired, *self.rows], key=lambda row: row is not None and row.is_ceiling)
        random = [row for row in self.rows if row.name.casefold().startswith("random")]
        chosen = [row for row in wanted if row is not None and row not in random]
        chosen = [row for i, row in enumerate(chosen) if row not in chosen[:i]][: 4 - len(random[:1])]
        return [row for row in self.rows if row in chosen + random[:1]]

    # --- training -----------------------------------------------------------------------------------------------------

    def curves(self) -> dict[str, str] | None:
        import numpy as np

        journals = {name: [self._entries(trial) for trial in self.groups[name]] for name in self.names[:ARMS]}
        metrics = {metric for runs in journals.values() for run in runs for entry in run for metric in entry.metrics}
        probed = {f"probe/{m}/miou": f"Probe mIoU, {self.ranking.metric_title(m)}" for m in (*MODALITY, "mean")}
        probes = {metric: title for metric, title in probed.items() if metric in metrics}
        charts: dict[str, dict[str, Any]] = {}
        for metric, title in ({m: t for m, t in CHARTS.items() if m in metrics} | probes).items():
            for name, runs in journals.items():
                lines = [_line(run, metric) for run in runs]
                lines = [(x, y) for x, y in lines if np.isfinite(y).all() and len(x) > 1]
                if lines:
                    charts.setdefault(title, {})[name] = lines
        if not charts:
            return None
        figure = self.plot.curves(charts, self.palette, self._xlabel(journals))
        return self._figure(figure, "Mean over seeds; the band reaches from the lowest to the highest seed.")

    def ramps(self) -> dict[str, str] | None:
        for trial in self._pretrained():
            entries = self._entries(trial)
            series = {name: _line(entries, f"train/{name}") for name in ("alpha", "gamma")}
            series = {name: line for name, line in series.items() if len(line[0]) > 1}
            if series:
                figure = self.plot.ramps(series, self._xlabel({"": [entries]}))
                return self._figure(figure, f"The schedule that {trial['arm']} (seed {trial['seed']}) followed.")
        return None

    def _entries(self, trial: dict[str, Any]) -> list[Entry]:
        return read_journal(trial["folder"] / "journal").get(trial["key"], [])

    def _xlabel(self, journals: dict[str, list[list[Entry]]]) -> str:
        by_epoch = all(entry.epoch is not None for runs in journals.values() for run in runs for entry in run)
        return "epoch" if by_epoch else "step"

    def _pretrained(self) -> list[dict[str, Any]]:
        """Trials in the order of the ranking, those that select labels first: they have weights to show."""
        trials = [trial for name in self.names for trial in self.groups[name]]
        return sorted(trials, key=lambda trial: (not trial["arm"].startswith("CromSS"), trial["arm"] == "oracle"))

    # --- labels and land ----------------------------------------------------------------------------------------------

    def noise(self) -> dict[str, Any] | None:
        lines = []
        for name in self.names:
            measured = [trial["noise"] for trial in self.groups[name] if trial["noise"]]
            modalities = [m for m in MODALITY if any(isinstance(one.get(m), dict) for one in measured)]
            for modality in modalities:
                found = [one[modality] for one in measured if isinstance(one.get(modality), dict)]
                cells = [_spread([one.get(key) for one in found]) for key in ("auroc_F", "auroc_F_enhanced", "auroc_W")]
                lines.append({"name": name if modality == modalities[0] else "", "modality": MODALITY[modality],
                              "cells": cells, "n": len(found)})  # fmt: skip
        rates = [trial["noise"]["rate"] for trial in self.trials if trial["noise"] and "rate" in trial["noise"]]
        return {"lines": lines, "rate": f"{100 * sum(rates) / len(rates):.1f}" if rates else ""} if lines else None

    def detection(self) -> dict[str, str] | None:
        for trial, data in self._panels():
            if not {"rgb", "label", "clean"} <= data.keys():
                continue
            scheme = self._scheme(data)
            weights = [m for m in MODALITY if f"label_weights_{m}" in data]
            if not weights:
                continue
            column = self.plot.Column
            columns = [
                column("S2 true colour", data["rgb"], "rgb"),
                column("noisy label", data["label"], "classes", scheme),
                column("clean label", data["clean"], "classes", scheme),
                column("wrong label", self.plot.wrong_labels(data["label"], data["clean"]), "wrong"),
                *(column(f"weights {MODALITY[m]}", data[f"label_weights_{m}"], "weights") for m in weights),
            ]
            caption = "Where the label is wrong, and the weight it was given: dark means the label was hardly used."
            return self._images(columns, 4, data, f"{trial['arm']}, seed {trial['seed']}. {caption}")
        return None

    def histograms(self) -> list[dict[str, str]]:
        for trial in self._pretrained():
            measured = [(m, (trial["noise"] or {}).get(m) or {}) for m in MODALITY]
            found = [(m, one["histogram"]) for m, one in measured if isinstance(one.get("histogram"), dict)]
            if found:
                draw = self.plot.confidence_histogram
                return [self._figure(draw(h["edges"], h["right"], h["wrong"], MODALITY[m]), f"{trial['arm']}, seed "
                                     f"{trial['seed']}, {MODALITY[m]}.") for m, h in found]  # fmt: skip
        return []

    def land(self) -> dict[str, str] | None:
        for trial, data in self._panels():
            modality = next((m for m in ("s2", "s1") if f"prediction_{m}" in data), None)
            if modality is None or not {"rgb", "label"} <= data.keys():
                continue
            scheme, name, column = self._scheme(data), MODALITY[modality], self.plot.Column
            columns = [
                column("S2 true colour", data["rgb"], "rgb"),
                *([column("S1 (VV)", data["s1"], "grey")] if "s1" in data else []),
                column("noisy label", data["label"], "classes", scheme),
                *(column(f"{kind} weights", data[f"{kind}_weights_{modality}"], "weights")
                  for kind in ("label", "entropy") if f"{kind}_weights_{modality}" in data),
                column("prediction", data[f"prediction_{modality}"], "classes", scheme),
                *self._reference(data, scheme),
            ]  # fmt: skip
            text = f"{trial['arm']}, seed {trial['seed']}, {name} network, pretraining patches; legend: {scheme.title}."
            return self._images(columns, PANELS, data, text)
        return None

    def _reference(self, data: dict[str, Any], own: Any) -> list[Any]:
        """The truth beside pretraining patches: the clean labels, or an independent map in a scheme of its own."""
        from cromss.landcover import scheme

        if "clean" in data:
            return [self.plot.Column("reference", data["clean"], "classes", own)]
        if "reference" not in data:
            return []
        other = scheme(str(data["reference_scheme"])) if "reference_scheme" in data else own
        return [self.plot.Column("reference", data["reference"], "classes", other)]

    def tests(self) -> Iterator[dict[str, str]]:
        """The same test patches, judged by one arm beside the other."""
        import numpy as np

        for modality, mode in self.columns:
            shown: list[tuple[str, dict[str, Any]]] = []
            for row in self._chosen():
                pattern = f"transfer/{modality}-{mode}-*/panels.npz"
                paths = sorted(path for trial in row.trials for path in trial["folder"].glob(pattern))
                data = self._load(paths[0]) if paths else {}
                if not {"rgb", "reference", "prediction"} <= data.keys():
                    continue
                if not shown or np.array_equal(data.get("ids"), shown[0][1].get("ids")):
                    shown.append((row.name, data))
            if not shown:
                continue
            first, column = shown[0][1], self.plot.Column
            scheme = self._scheme(first)
            columns = [
                column("S2 true colour", first["rgb"], "rgb"),
                *([column("S1 (VV)", first["s1"], "grey")] if "s1" in first else []),
                column("reference", first["reference"], "classes", scheme),
                *(column(name, data["prediction"], "classes", scheme) for name, data in shown),
            ]
            title = self.ranking.column_title((modality, mode))
            yield self._images(columns, PANELS, first, f"Test patches, {title}; legend: {scheme.title}.")

    def _panels(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        for trial in self._pretrained():
            if data := self._load(trial["folder"] / "panels.npz"):
                yield trial, data

    def _load(self, path: Path) -> dict[str, Any]:
        import numpy as np

        if not path.exists():
            return {}
        try:
            with np.load(path, allow_pickle=False) as archive:
                data = {key: archive[key] for key in archive.files}
            if len({len(array) for array in data.values() if array.ndim}) != 1:
                raise ValueError("its pictures are not equally many")
            self._scheme(data)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            self.unreadable.append(f"{path.relative_to(self.folder)}: {' '.join(str(error).split())}")
            return {}
        return data if len(data.get("rgb", ())) else {}

    def _scheme(self, data: dict[str, Any]) -> Any:
        from cromss.landcover import scheme

        return scheme(str(data["scheme"])) if "scheme" in data else scheme("dynamic-world")

    def _images(self, columns: list[Any], most: int, data: dict[str, Any], caption: str) -> dict[str, str]:
        """`most` of the patches, evenly spread: the patches of two-fold tests come one fold after the other."""
        import numpy as np

        count = len(columns[0].images)
        rows = np.linspace(0, count - 1, min(most, count)).round().astype(int)
        columns = [column._replace(images=column.images[rows]) for column in columns]
        ids = [str(data["ids"][row]) for row in rows] if "ids" in data else []
        return self._figure(self.plot.panels(columns, ids), caption, wide=True)

    def stores(self) -> Iterator[dict[str, Any]]:
        """The pictures that were made of the stores when the run began, by store."""
        import base64

        from PIL import Image

        for store, title in (("pretraining", "Pretraining store"), ("downstream", "Downstream store")):
            pictures = []
            for name, caption in PORTRAIT.items():
                file = self.folder / "stores" / store / f"{name}.png"
                try:
                    with Image.open(file) as image:
                        width = round(image.width * 96 / 150)  # drawn at 150 dots an inch
                    source = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
                except FileNotFoundError:
                    continue
                except OSError:
                    self.unreadable.append(str(file.relative_to(self.folder)))
                    continue
                pictures.append({"source": source, "caption": caption, "width": width, "wide": name == "contact_sheet"})
            if pictures:
                yield {"title": title, "pictures": pictures}

    # --- the rest -----------------------------------------------------------------------------------------------------

    def _figure(self, figure: Any, caption: str, wide: bool = False) -> dict[str, Any]:
        width = round(96 * figure.get_figwidth())
        return {"source": self.plot.data_uri(figure), "caption": caption, "width": width, "wide": wide}

    def provenance(self) -> dict[str, Any]:
        import yaml

        trial = self.best.trials[0] if self.best else self.trials[0]
        facts = {"run folder": str(self.folder.resolve()), "command": self.sweep.get("command") or trial["command"],
                 "begun": self.sweep.get("created", ""), "budget": self.sweep.get("budget", ""),
                 "spent": self.sweep.get("spent", ""), "pretraining store": self.sweep.get("store_digest", ""),
                 "downstream store": self.sweep.get("downstream_digest", ""), "versions": _versions()}  # fmt: skip
        if (seen := self.sweep.get("overlap", {})).get("shared"):
            facts["test tiles on pretraining tiles"] = f"{seen['shared']} of {seen['tiles']}"
        lost = self.sweep.get("quarantined") or (trial.get("pretraining") or {}).get("quarantined") or []
        if lost:
            patches, names = sum(one["patches"] for one in lost), ", ".join(one["shard"] for one in lost)
            facts["quarantined"] = f"{patches:,} patches in {len(lost)} damaged shards were left out: {names}"
        title = f"{self.best.name if self.best else trial['arm']}, seed {trial['seed']}"
        config = yaml.safe_dump(trial["config"], sort_keys=False, width=100) if trial["config"] else ""
        return {"facts": {key: value for key, value in facts.items() if value}, "title": title, "config": config}


def _line(entries: Iterable[Entry], metric: str) -> tuple[Any, Any]:
    """(x, y) of one metric: x = epoch, or the step where epochs were not written."""
    import numpy as np

    found = [(entry.step if entry.epoch is None else entry.epoch, entry.metrics[metric]) for entry in entries
             if metric in entry.metrics]  # fmt: skip
    return np.array([x for x, _ in found], float), np.array([y for _, y in found], float)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _spread(values: Sequence[float | None]) -> str:
    import numpy as np

    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{np.mean(known):.3f}" + (f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else "")


def _versions() -> str:
    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    names: list[str] = ["cromss", "torch", "ray", "segmentation-models-pytorch", "mlflow"]
    return f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {version(name)}" for name in names)


if __name__ == "__main__":
    sys.exit(main())
