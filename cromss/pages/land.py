"""Patches of land: what the networks saw and learned, the same test patches arm by arm, the stores."""

from collections.abc import Iterator
from typing import Any

from cromss.pages.run import Run, strongest_first, title

PANELS = 6  # rows
PORTRAIT = {
    "classes": "Classes by season: the k-th acquisition of every place in time order.",
    "histograms": "Pixels per band on the axis of the 8-bit codes (mean ± 2 std) and in physical units.",
    "map": "Where the places lie.",
    "contact_sheet": "Patches drawn at random, as they are stored.",
}


def land(run: Run) -> dict[str, str] | None:
    for trial, data in run.panels():
        predicted = strongest_first(k.removeprefix("prediction_") for k in data if k.startswith("prediction_"))
        if not predicted or not {"rgb", "label"} <= data.keys():
            continue
        modality, scheme, column = predicted[0], run.scheme(data), run.plot.Column
        columns = [
            column("S2 true colour", data["rgb"], "rgb"),
            *([column("S1 (VV)", data["s1"], "grey")] if "s1" in data else []),
            column("noisy label", data["label"], "classes", scheme),
            *(column(f"{kind} weights", data[f"{kind}_weights_{modality}"], "weights")
              for kind in ("label", "entropy") if f"{kind}_weights_{modality}" in data),
            column("prediction", data[f"prediction_{modality}"], "classes", scheme),
            *reference(run, data, scheme),
        ]  # fmt: skip
        text = f"{trial['arm']}, seed {trial['seed']}, {title(modality)} network, pretraining patches"
        return run.images(columns, PANELS, data, f"{text}; legend: {scheme.title}.")
    return None


def reference(run: Run, data: dict[str, Any], own: Any) -> list[Any]:
    """The truth beside pretraining patches: the clean labels, or an independent map in a scheme of its own."""
    from cromss.landcover import scheme

    if "clean" in data:
        return [run.plot.Column("reference", data["clean"], "classes", own)]
    if "reference" not in data:
        return []
    other = scheme(str(data["reference_scheme"])) if "reference_scheme" in data else own
    return [run.plot.Column("reference", data["reference"], "classes", other)]


def tests(run: Run) -> Iterator[dict[str, str]]:
    """The same test patches, judged by one arm beside the other."""
    import numpy as np

    for modality, mode in run.columns:
        shown: list[tuple[str, dict[str, Any]]] = []
        for row in run.chosen():
            pattern = f"transfer/{modality}-{mode}-*/panels.npz"
            paths = sorted(path for trial in row.trials for path in trial["folder"].glob(pattern))
            data = run.arrays(paths[0]) if paths else {}
            if not {"rgb", "reference", "prediction"} <= data.keys():
                continue
            if not shown or np.array_equal(data.get("ids"), shown[0][1].get("ids")):
                shown.append((row.name, data))
        if not shown:
            continue
        first, column = shown[0][1], run.plot.Column
        scheme = run.scheme(first)
        columns = [
            column("S2 true colour", first["rgb"], "rgb"),
            *([column("S1 (VV)", first["s1"], "grey")] if "s1" in first else []),
            column("reference", first["reference"], "classes", scheme),
            *(column(name, data["prediction"], "classes", scheme) for name, data in shown),
        ]
        name = run.ranking.column_title((modality, mode))
        yield run.images(columns, PANELS, first, f"Test patches, {name}; legend: {scheme.title}.")


def stores(run: Run) -> Iterator[dict[str, Any]]:
    """The pictures that were made of the stores when the run began, by store."""
    for store, name in (("pretraining", "Pretraining store"), ("downstream", "Downstream store")):
        files = {kind: run.folder / "stores" / store / f"{kind}.png" for kind in PORTRAIT}
        found = [run.picture(file, PORTRAIT[kind], kind == "contact_sheet") for kind, file in files.items()]
        if pictures := [picture for picture in found if picture]:
            yield {"title": name, "pictures": pictures}
