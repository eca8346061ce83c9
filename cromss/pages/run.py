"""A run folder as the sections of the report see it."""

import base64
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from cromss.journal import Entry, read_journal, read_sweep, read_trials

ROWS = 20  # of a table or chart before the rest is folded away
ARMS = 7  # in one chart: as many as there are colours
MAX_BYTES = 2**30  # of the pictures in one file, unpacked


class Run:
    """What was run, ranked; and the few ways in which every section draws and reads."""

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
        self._journals: dict[str, list[Entry]] = {}

    @property
    def states(self) -> list[str]:
        states = Counter(trial["status"] for trial in self.trials)
        return [f"{states[state]} {state}" for state in ("done", "running", "stopped", "failed") if states[state]]

    @property
    def score_title(self) -> str:
        """What ranks: `S2`, or what it is the mean of."""
        return self.ranking.metric_title(self.metric, self.ranking.modalities_of(self.rows, self.metric))

    @cached_property
    def pretrained(self) -> list[dict[str, Any]]:
        """Trials in the order of the ranking, those that select labels first: they have weights to show."""
        trials = [trial for name in self.names for trial in self.groups[name]]
        return sorted(
            trials, key=lambda trial: (not trial["arm"].startswith("CromSS"), trial["arm"].startswith("oracle"))
        )

    def chosen(self) -> list[Any]:
        """The leader, what it is first compared with, and random: four arms are what a chart of bars bears."""
        paired = [row for pair in self.ranking.pairs(self.rows) for row in pair]
        wanted = sorted([self.best, *paired, *self.rows], key=lambda row: row is not None and row.is_ceiling)
        random = [row for row in self.rows if row.name.casefold().startswith("random")]
        chosen = [row for row in wanted if row is not None and row not in random]
        chosen = [row for i, row in enumerate(chosen) if row not in chosen[:i]][: 4 - len(random[:1])]
        return [row for row in self.rows if row in chosen + random[:1]]

    # --- journals -----------------------------------------------------------------------------------------------------

    def entries(self, trial: dict[str, Any]) -> list[Entry]:
        """The journal of a trial's pretraining."""
        if trial["key"] not in self._journals:
            self._journals[trial["key"]] = read_journal(trial["folder"] / "journal").get(trial["key"], [])
        return self._journals[trial["key"]]

    def xlabel(self, trials: Iterable[dict[str, Any]]) -> str:
        """What the steps of these trials are counted in."""
        return "epoch" if all(e.epoch is not None for trial in trials for e in self.entries(trial)) else "step"

    # --- pictures -----------------------------------------------------------------------------------------------------

    def figure(self, figure: Any, caption: str, wide: bool = False) -> dict[str, Any]:
        """A matplotlib figure as the template takes it; a `wide` one may be scrolled on a narrow screen."""
        width = round(96 * figure.get_figwidth())
        return {"source": self.plot.data_uri(figure), "caption": caption, "width": width, "wide": wide}

    def panels(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Every pretraining that left pictures, with them."""
        for trial in self.pretrained:
            if data := self.arrays(trial["folder"] / "panels.npz"):
                yield trial, data

    def arrays(self, path: Path) -> dict[str, Any]:
        """The pictures of a file, one patch after the other; nothing where there are none, or none that can be read."""
        import numpy as np

        if not path.exists():
            return {}
        try:
            with np.load(path, allow_pickle=False) as archive:
                if sum(member.file_size for member in archive.zip.infolist()) > MAX_BYTES:
                    raise ValueError("decodes to gigabytes")
                data = {key: archive[key] for key in archive.files}
            if len({len(array) for key, array in data.items() if array.ndim and key != "epochs"}) != 1:
                raise ValueError("its pictures are not equally many")
            self.scheme(data)
        except (OSError, ValueError, TypeError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
            self.unreadable.append(f"{path.relative_to(self.folder)}: {' '.join(str(error).split())}")
            return {}
        return data if len(data.get("rgb", ())) else {}

    def scheme(self, data: dict[str, Any]) -> Any:
        from cromss.landcover import scheme

        return scheme(str(data["scheme"])) if "scheme" in data else scheme("dynamic-world")

    def images(self, columns: list[Any], most: int, data: dict[str, Any], caption: str) -> dict[str, str]:
        """`most` of the patches, evenly spread: the patches of two-fold tests come one fold after the other."""
        rows, ids = self.spread(len(columns[0].images), most, data)
        columns = [column._replace(images=column.images[rows]) for column in columns]
        return self.figure(self.plot.panels(columns, ids), caption, wide=True)

    def spread(self, count: int, most: int, data: dict[str, Any]) -> tuple[Any, list[str]]:
        """At most `most` of `count` patches, and what they are called."""
        import numpy as np

        rows = np.linspace(0, count - 1, min(most, count)).round().astype(int)
        return rows, [str(data["ids"][row]) for row in rows] if "ids" in data else []

    def picture(self, file: Path, caption: str, wide: bool) -> dict[str, Any] | None:
        """A PNG file, drawn at 150 dots an inch, as the template takes it."""
        from PIL import Image

        try:
            with Image.open(file) as image:
                width = round(image.width * 96 / 150)
            source = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
        except FileNotFoundError:
            return None
        except (OSError, ValueError, Image.DecompressionBombError):
            self.unreadable.append(str(file.relative_to(self.folder)))
            return None
        return {"source": source, "caption": caption, "width": width, "wide": wide}


def title(modality: str) -> str:
    """`S2` of s2, `S1D` of s1d: sensors are called by their keys."""
    return modality.upper()


def strongest_first(modalities: Iterable[str]) -> list[str]:
    """Sentinel-2 before Sentinel-1 and whatever else there is."""
    return sorted(modalities, key=lambda modality: (modality != "s2", modality))


def line(entries: Iterable[Entry], metric: str) -> tuple[Any, Any]:
    """(x, y) of one metric: x = epoch, or the step where epochs were not written."""
    import numpy as np

    found = [(entry.step if entry.epoch is None else entry.epoch, entry.metrics[metric]) for entry in entries
             if metric in entry.metrics]  # fmt: skip
    return np.array([x for x, _ in found], float), np.array([y for _, y in found], float)


def mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def spread_text(values: Sequence[float | None], digits: int = 3) -> str:
    """`0.871 ± 0.004`, without the deviation for one value."""
    import numpy as np

    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{np.mean(known):.{digits}f}" + (f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else "")
