"""What an audit says: a few lines for the terminal, one page for the browser."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cromss.landcover import scheme

_JUDGES = {"truth": "the truth", "reference": "the reference"}
_ASIDE = {"unlabelled": "unlabelled", "nodata": "without image data", "unjudged": "of classes that it cannot answer"}
_WHERE = {
    "suggestions_that_differ": "where another class is suggested",
    "suggestions_on_flagged": "on flagged pixels with a suggestion",
}


def summary(result: Mapping[str, Any]) -> str:
    """The lines that the verb prints."""
    return "\n".join(f"{name:<12} {line}" for name, line in _lines(result))


def _lines(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    pixels, flagged, weights = result["pixels"], result["flagged"], result["weights"]
    aside = "".join(f"; {pixels[key]:,} {name}" for key, name in _ASIDE.items() if pixels[key])
    full = "" if weights["per_class"] else f": full from F' = {weights['threshold']:.3g} on"
    below = f"confidence F' below {flagged['confidence_below']:.3g}"
    lines = [
        ("labels", f"{pixels['judged']:,} judged in {result['patches']:,} patches{aside}"),
        ("flagged", f"{flagged['pixels']:,} pixels, {flagged['share']:.2%}: {below}"),
        ("weights", f"mean W {weights['mean']:.3f} at alpha {weights['alpha']:g}{full}"),
    ]
    doubted = sorted((row for row in result["classes"] if row["flagged"]), key=lambda row: -row["share_flagged"])
    said = [
        f"{row['class']} {row['share_flagged']:.1%} flagged{_mostly('suggested', row['most_often'])}"
        for row in doubted[:3]
    ]
    lines.append(("classes", "; ".join(said) or "none has a flagged pixel"))
    if unknown := _unknown(result["classes"]):
        share = sum(row["flagged"] for row in unknown) / flagged["pixels"]
        names = ", ".join(f"{row['class']} (mean F' {row['mean_confidence']:.2g})" for row in unknown)
        lines.append(
            (
                "note",
                f"hardly a label is believed of {names}, {share:.0%} of the flags: wrong labels, or a class not learnt",
            )
        )
    for row in result["worst"][:3]:
        if int(row["flagged"]):
            share = f"{float(row['share_flagged']):.1%} flagged"
            lines.append((f"worst {row['rank']}", f"{row['patch_id']}: {share}{_mostly('', row['worst_pair'])}"))
    for key, name in _JUDGES.items():
        if result.get(key):
            lines += [(key, line) for line in _judged(result[key], name)]
    if (other := result.get("reference_store")) and other["absent"] + other["elsewhere"]:
        missing = f"{other['absent']:,} are not in it, {other['elsewhere']:,} lie elsewhere there"
        lines.append(("reference", f"it has {other['patches']:,} of the patches; {missing}"))
    if result.get("cleanlab"):
        lines += [("cleanlab", line) for line in _cleanlab(result["cleanlab"])]
    return lines


def _unknown(classes: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Given classes with flags that are trusted less than a guess would be."""
    return [row for row in classes if row["flagged"] and row["mean_confidence"] < 1 / len(classes)]


def _mostly(verb: str, what: str) -> str:
    return f", mostly {verb} {what}".replace("  ", " ") if what else ""


def _judged(found: Mapping[str, Any], name: str) -> list[str]:
    """Against the truth or a reference."""
    base, precision = found["rate"], found["precision"]
    lines = [f"{base:.1%} of {found['pixels']:,} labels differ from {name}: the base rate"]
    if precision is not None:
        times = f", {precision / base:.2f} times the base rate" if base else ""
        lines.append(f"of the {found['flagged']:,} flagged {precision:.1%} differ{times}")
    if found["auroc"]["joint"] is not None:
        of = ", ".join(f"{key} {value:.3f}" for key, value in found["auroc"].items())
        lines.append(f"suspicion as a finder of these: AUROC {of}; AUPRC {found['auprc']['joint']:.3f}")
    for key, where in _WHERE.items():
        if (one := found[key])["pixels"]:
            rates = f"given label right {one['given_right']:.1%}, suggestion right {one['suggestion_right']:.1%}"
            lines.append(f"{where} ({one['pixels']:,} pixels): {rates}")
    return lines


def _cleanlab(found: Mapping[str, Any]) -> list[str]:
    rank = "not defined" if found["spearman"] is None else f"{found['spearman']:.4f}"
    lines = [f"Spearman {rank} between its scores and ours on {found['pixels']:,} pixels"]
    if found["ours_also_theirs"] is not None:
        among = f"{found['ours_also_theirs']:.1%} of what is flagged here (by chance {found['by_chance']:.1%})"
        lines.append(f"it flags {found['theirs'] / found['pixels']:.2%}, among them {among}")
    if found["overlap_at_their_number"] is not None:
        lines.append(f"as many of ours as it flags: {found['overlap_at_their_number']:.1%} are the same pixels")
    for judge, one in found["precision"].items():
        if one["theirs"] is not None and one["as_many_of_ours"] is not None:
            ours = f"{one['as_many_of_ours']:.1%} of as many of ours (base rate {one['rate']:.1%})"
            lines.append(f"against {_JUDGES[judge]}: {one['theirs']:.1%} of its flags differ, {ours}")
    return lines


def page(result: Mapping[str, Any], out: Path) -> str:
    """One self-contained page; pictures from `out`, where they are there."""
    import jinja2

    pictures = {
        name: "data:image/png;base64," + base64.b64encode((out / f"{name}.png").read_bytes()).decode()
        for name in ("worst", "confusion") if (out / f"{name}.png").exists()
    }  # fmt: skip
    templates = jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates")
    engine = jinja2.Environment(loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    classes = sorted(result["classes"], key=lambda row: -(row["share_flagged"] or 0))
    colours = dict(zip((own := scheme(result["store"]["scheme"])).classes, own.colours, strict=True))
    return engine.get_template("audit.html").render(
        result=result, lines=_lines(result), pictures=pictures, classes=classes, colours=colours, title=own.title
    )
