"""Do the weights find the wrong labels? In numbers, over training, and on the ground."""

from typing import Any

from cromss.pages.run import ARMS, ROWS, Run, line, spread_text, strongest_first, title

PATCHES = 3  # of a film, each with a row per modality
DETECTED = {
    "auroc_F_enhanced": "AUROC of F'",
    "auroc_W": "AUROC of W",
    "auprc_F_enhanced": "AUPRC of 1 - F'",
    "auprc_W": "AUPRC of 1 - W",
}


def noise(run: Run) -> dict[str, Any] | None:
    """AUROC (and AUPRC, where measured) of every configuration at the end of its training."""
    kinds = ["auroc_F", "auroc_F_enhanced", "auroc_W"]
    measured = [trial["noise"] for trial in run.trials if trial["noise"]]
    if any("auprc_W" in one for noise in measured for one in noise.values() if isinstance(one, dict)):
        kinds += ["auprc_F_enhanced", "auprc_W"]
    lines = []
    for name in run.names:
        noises = [trial["noise"] for trial in run.groups[name] if trial["noise"]]
        modalities = strongest_first({m for noise in noises for m, one in noise.items() if isinstance(one, dict)})
        for modality in modalities:
            found = [noise[modality] for noise in noises if isinstance(noise.get(modality), dict)]
            cells = [spread_text([one.get(kind) for one in found]) for kind in kinds]
            lines.append({"name": name if modality == modalities[0] else "", "modality": title(modality), "cells": cells,
                          "n": len(found)})  # fmt: skip
    rates = sorted(noise["rate"] for noise in measured if "rate" in noise)
    said = "" if not rates else f"{100 * rates[0]:.1f}"
    if rates and rates[-1] - rates[0] > 0.005:
        said += f" to {100 * rates[-1]:.1f}"
    titles = {"auroc_F": "confidence F", "auroc_F_enhanced": "enhanced F'", "auroc_W": "label weights W",
              "auprc_F_enhanced": "AUPRC, F'", "auprc_W": "AUPRC, W"}  # fmt: skip
    return (
        {"lines": lines, "rate": said, "header": [titles[kind] for kind in kinds], "shown": 2 * ROWS} if lines else None
    )


def over_training(run: Run) -> dict[str, str] | None:
    """AUROC and AUPRC of F' and W epoch by epoch, for every modality."""
    journals = {name: [run.entries(trial) for trial in run.groups[name]] for name in run.names[:ARMS]}
    metrics = {
        metric for runs in journals.values() for entries in runs for entry in entries for metric in entry.metrics
    }
    modalities = strongest_first({metric.split("/")[1] for metric in metrics if metric.startswith("noise/")
                                  and metric.count("/") == 2})  # fmt: skip
    charts: dict[str, dict[str, Any]] = {}
    for kind, what in DETECTED.items():
        for modality in modalities:
            for name, runs in journals.items():
                lines = [line(entries, f"noise/{modality}/{kind}") for entries in runs]
                lines = [(x, y) for x, y in lines if len(x) > 1]
                if lines:
                    charts.setdefault(f"{what}, {title(modality)}", {})[name] = lines
    if not charts:
        return None
    drawn = [trial for name in journals for trial in run.groups[name]]
    caption = (
        "Over training, on training batches: mean over seeds, the band from the lowest to the highest. An AUROC of .5 and an "
        "AUPRC of the noise rate are a guess; W begins as one, because at alpha 1 all labels weigh the same."
    )
    figure = run.plot.curves(charts, run.palette, run.xlabel(drawn), across=len(modalities), share=True)
    return run.figure(figure, caption)


def detection(run: Run) -> dict[str, str] | None:
    """Error map beside weights, of one run."""
    for trial, data in run.panels():
        if not {"rgb", "label", "clean"} <= data.keys():
            continue
        scheme = run.scheme(data)
        weights = weighed(data)
        if not weights:
            continue
        column = run.plot.Column
        columns = [
            column("S2 true colour", data["rgb"], "rgb"),
            column("noisy label", data["label"], "classes", scheme),
            column("clean label", data["clean"], "classes", scheme),
            column("wrong label", run.plot.wrong_labels(data["label"], data["clean"]), "wrong"),
            *(column(f"weights {title(m)}", data[f"label_weights_{m}"], "weights") for m in weights),
        ]
        caption = "Where the label is wrong, and the weight it was given: dark means the label was hardly used."
        return run.images(columns, 4, data, f"{trial['arm']}, seed {trial['seed']}. {caption}")
    return None


def weighed(data: dict[str, Any]) -> list[str]:
    """The modalities that left label weights in a file of pictures."""
    prefix = "label_weights_"
    return strongest_first(key.removeprefix(prefix) for key in data if key.startswith(prefix))


def histograms(run: Run) -> list[dict[str, str]]:
    for trial in run.pretrained:
        measured = {m: one for m, one in (trial["noise"] or {}).items() if isinstance(one, dict)}
        found = [(m, measured[m]["histogram"]) for m in strongest_first(measured) if measured[m].get("histogram")]
        if found:
            draw = run.plot.confidence_histogram
            return [run.figure(draw(h["edges"], h["right"], h["wrong"], title(m)), f"{trial['arm']}, seed "
                               f"{trial['seed']}, {title(m)}.") for m, h in found]  # fmt: skip
    return []


def film(run: Run) -> dict[str, str] | None:
    """How the selection came about: the label weights on the same validation patches over the epochs."""
    for trial in run.pretrained:
        data = run.arrays(trial["folder"] / "selection.npz")
        modalities = weighed(data)
        if not modalities or not {"label", "epochs"} <= data.keys():
            continue
        rows, ids = run.spread(len(data["label"]), PATCHES, data)
        column, scheme = run.plot.Column, run.scheme(data)
        still = [column("S2 true colour", data["rgb"][rows], "rgb"),
                 column("noisy label", data["label"][rows], "classes", scheme)]  # fmt: skip
        if "clean" in data:
            wrong = run.plot.wrong_labels(data["label"], data["clean"])
            still.append(column("wrong label", wrong[rows], "wrong"))
        frames = [
            run.plot.Frame(
                f"epoch {epoch:g}", {f"W {title(m)}": data[f"label_weights_{m}"][rows, k] for m in modalities}
            )
            for k, epoch in enumerate(data["epochs"])
        ]
        caption = (
            "The weights of the same validation patches as training goes on, alpha as it then was: dark means that the "
            "label is hardly used."
        )
        figure = run.plot.film(still, frames, ids)
        return run.figure(figure, f"{trial['arm']}, seed {trial['seed']}. {caption}", wide=True)
    return None
