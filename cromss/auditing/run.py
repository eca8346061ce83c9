"""An audit from beginning to end: look, count, write, compare, tell.

OUT/asked.json   what was asked for; another question in the same folder is refused by what differs
OUT/seen/        what the network said, a file a row group; goes when the audit is done
OUT/maps/        a GeoTIFF and a STAC item a patch, and collection.json
OUT/*.csv *.png audit.html    what people look at
OUT/audit.json   every number and where it comes from; written last
"""

import json
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cromss.auditing import second_opinion
from cromss.auditing.maps import FOLDER, file_name, pixels_of, suggested_of, write_map
from cromss.auditing.network import Auditor
from cromss.auditing.page import page
from cromss.auditing.pictures import Tile, contact_sheet, suggestions
from cromss.auditing.reference import Reference
from cromss.auditing.scores import CODES, decoded
from cromss.auditing.settings import RESULT, AuditConfig, claim, write_bytes, write_text
from cromss.auditing.tally import (
    Classes,
    Score,
    Thresholds,
    Verdict,
    by_class,
    pairs,
    settled,
    thresholds,
    truth,
    worst_pair,
)
from cromss.auditing.tiles import Tiles, write_rows
from cromss.auditing.walk import Group, Rate, Say, Seen, ahead, groups, look_at, read, seen
from cromss.cli import command_line
from cromss.data.appearance import composite, optical_first
from cromss.data.assembly import Wanted
from cromss.data.store import PatchStore
from cromss.landcover import IGNORE
from cromss.maps.cog import Grid
from cromss.maps.stac import item, write_collection
from cromss.plot.look import png
from cromss.provenance import collect
from cromss.sensors import sensor

SEEN = "seen"
SHOWN = 8  # tiles of the contact sheet


def audit(
    model: str | Path, store: PatchStore, out: Path, config: AuditConfig, *, reference: PatchStore | None = None,
    cleanlab: bool | None = None, device: torch.device | str = "cpu", batch_size: int = 8, say: Say = print,
) -> dict[str, Any]:  # fmt: skip
    """Audit the labels of `store` with the network of `model`; the content of `out/audit.json`.

    reference   another store with independent labels of the same tiles: scored beside
    cleanlab    ask cleanlab too: True, False, or None = where it is installed
    batch_size  patches that the network sees at a time
    The same call again goes on where a stopped one was; one that has finished returns what was written. Raises ValueError,
    before anything is written, for a network, a store, a reference or an `out` that do not fit.
    """
    began = time.monotonic()
    auditor = Auditor.open(model, store, config.modalities, device)
    todo = groups(store, config)
    if cleanlab:
        second_opinion.require()
    if config.maps:
        item("here", Grid("", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (1, 1)), None)  # pystac is missed now or never
    other = None if reference is None else Reference(reference, store)
    with_cleanlab = second_opinion.installed() if cleanlab is None else cleanlab
    asked = _asked(auditor, config, reference, with_cleanlab)
    claim(out, asked)
    if (out / RESULT).exists():
        shutil.rmtree(out / SEEN, ignore_errors=True)
        return json.loads((out / RESULT).read_text())
    _tell(auditor, say)
    result = _Audit(auditor, config, out, todo, other, say).run(batch_size, with_cleanlab)
    result = {
        "model": {
            "path": str(auditor.model.path), "sha256": auditor.digest, "modalities": list(auditor.modalities),
            "scheme": auditor.model.scheme.name, "trained_on_these_labels": auditor.saw_these_labels,
            "drift": auditor.drift(),
        },
        "store": {"path": str(store.path), "digest": store.digest, "scheme": store.scheme.name,
                  "unanswered": list(auditor.classes.missing)},
        "asked": asked, **result, "seconds": time.monotonic() - began, "command": command_line(),
        "provenance": collect(seed=0, device=str(torch.device(device).type), data=str(store.path),
                              store_digest=store.digest, downstream=str(reference.path) if reference else "",
                              downstream_digest=reference.digest if reference else ""),
    }  # fmt: skip
    write_text(out / "audit.html", page(result, out))
    write_text(out / RESULT, json.dumps(result, indent=1, allow_nan=False) + "\n")
    shutil.rmtree(out / SEEN, ignore_errors=True)
    return result


def _asked(auditor: Auditor, config: AuditConfig, reference: PatchStore | None, cleanlab: bool) -> dict[str, Any]:
    told = config.model_dump(mode="json") | {"modalities": list(auditor.modalities)}
    told["splits"] = list(config.splits) or auditor.store.splits
    return {
        "model": auditor.digest, "store": auditor.store.digest, "reference": reference.digest if reference else None,
        "cleanlab": cleanlab, **told, "enhancement": auditor.objective.enhancement.model_dump(mode="json"),
    }  # fmt: skip


def _tell(auditor: Auditor, say: Say) -> None:
    """What a reader of the numbers must know of the network."""
    if auditor.saw_these_labels:
        say("note: the network was trained on these very labels and may believe errors that it has learnt")
    for name, bands in auditor.drift().items():
        say(f"note: {name} lies far from what the network was trained on: {', '.join(bands)}")
    if auditor.classes.missing:
        say(f"note: the network has no answer for {', '.join(auditor.classes.missing)}: these labels are not judged")


class _Entry(NamedTuple):
    """What a collection asks of an item."""

    id: str
    bbox: list[float] | None
    datetime: Any
    common_metadata: Any


class _Dates(NamedTuple):
    start_datetime: Any
    end_datetime: Any


class _Audit:
    def __init__(
        self, auditor: Auditor, config: AuditConfig, out: Path, todo: Sequence[Group], other: Reference | None, say: Say
    ) -> None:
        self.auditor, self.config, self.out, self.todo, self.other, self.say = auditor, config, out, todo, other, say
        self.store, self.scheme = auditor.store, auditor.store.scheme
        self.coverage: dict[str, int] = {}  # patches of the reference that were found, and not
        self.load = partial(seen, out / SEEN, auditor=auditor, enhancement=auditor.objective.enhancement)

    def run(self, batch_size: int, cleanlab: bool) -> dict[str, Any]:
        look_at(self.auditor, self.todo, self.out / SEEN, batch_size, self.say)
        pixels, scores, counts = self._count()
        limits = thresholds(counts, self.config.flagged, self.config.alpha, self.config.per_class)
        classes, worst, tiles = self._write(limits, scores)
        found = {
            "patches": len(tiles),
            "pixels": pixels,
            "flagged": _flagged(limits, counts),
            "weights": {
                "alpha": self.config.alpha, "per_class": self.config.per_class,
                "threshold": limits.w.tolist() if self.config.per_class else float(limits.w[0]),
                "mean": float(classes.sums[:, 3].sum() / classes.sums[:, 0].sum()),
            },
            "classes": classes.rows(self.scheme.classes),
            "confusion": classes.pairs.tolist(),
            "confusion_flagged": classes.flagged_pairs.tolist(),
            "worst": worst,
            **settled(scores, limits.cut),
            "reference_store": self._reference(),
            "cleanlab": self._cleanlab(limits) if cleanlab else None,
        }  # fmt: skip
        self._tables(classes)
        self._pictures(classes, limits, tiles)
        return found

    def judges(self, one: Seen) -> dict[str, Verdict]:
        """Who says what is wrong: the truth of a synthetic store, the reference."""
        known = truth(one)
        found = {} if known is None else {"truth": known}
        return found if self.other is None else found | {"reference": self.other.of(one)}

    def _count(self) -> tuple[dict[str, int], dict[str, Score], np.ndarray]:
        total = sum(group.rows for group in self.todo)
        rate, scores = Rate("counted", total, self.say), {name: Score() for name in ("truth", "reference")}
        counts, pixels = 0, dict.fromkeys(("judged", "unjudged", "unlabelled", "nodata"), 0)
        for group, one in ahead(self.todo, self.load):
            counts = counts + by_class(one, len(self.scheme))
            for name, verdict in self.judges(one).items():
                scores[name].count(one, verdict)
            labelled = one.label != IGNORE
            for name, where in (
                ("judged", one.judged), ("unjudged", labelled & ~one.judged), ("unlabelled", one.valid & ~labelled),
                ("nodata", ~one.valid),
            ):  # fmt: skip
                pixels[name] += int(where.sum())
            rate.step(group.rows)
        if not pixels["judged"]:
            raise ValueError(
                f"{self.store.path}: not one of its {sum(pixels.values()):,} pixels has a label to judge "
                f"({pixels['unlabelled']:,} unlabelled, {pixels['nodata']:,} without image data, {pixels['unjudged']:,} of "
                "classes that the network has no answer for)"
            )
        if self.other is not None:
            self.other.require_some()
            self.coverage = {
                "patches": self.other.compared, "absent": self.other.absent, "elsewhere": self.other.elsewhere
            }  # fmt: skip
        return pixels, scores, counts

    def _write(self, limits: Thresholds, scores: dict[str, Score]) -> tuple[Classes, list[dict[str, str]], Tiles]:
        rate = Rate("wrote", sum(group.rows for group in self.todo), self.say)
        classes, entries = Classes(len(self.scheme)), {}
        folder = self.out / FOLDER
        tiles = Tiles(self.out / ".tiles.part")
        try:
            for number, group in enumerate(self.todo):
                one = self.load(group)
                flagged, weights = limits.flagged(one), limits.weights(one)
                suggested = suggested_of(one, self.config.confident)
                classes.add(one, flagged, weights, suggested)
                for name, verdict in self.judges(one).items():
                    scores[name].suggestions(one, verdict, flagged, suggested)
                for place, row in enumerate(one.rows):
                    line = self._line(one, place, flagged, suggested)
                    tiles.add(number, place, line)
                    if self.config.maps:
                        pixels = pixels_of(one, place, flagged, weights, suggested)
                        told = {f"cromss:{key}": line[key] for key in ("flagged", "share_flagged", "mean_confidence")}
                        made = write_map(folder, row, pixels, self.auditor.modalities, self.scheme, told)
                        dates = _Dates(made.common_metadata.start_datetime, made.common_metadata.end_datetime)
                        entries[f"./{made.id}.json"] = _Entry(made.id, made.bbox, made.datetime, dates)
                rate.step(group.rows)
            worst = tiles.finish(self.out / "tiles.csv")
        except BaseException:
            tiles.close()
            raise
        if self.config.maps:
            write_collection(
                folder / "collection.json",
                "cromss-audit",
                f"Label-noise audit of {Path(str(self.store.path)).name}",
                entries,
            )
        return classes, worst, tiles

    def _line(self, one: Seen, place: int, flagged: np.ndarray, suggested: np.ndarray) -> dict[str, Any]:
        judged, row = one.judged[place], one.rows[place]
        pixels, worst = int(judged.sum()), int(flagged[place].sum())
        table = pairs(one.label[place], suggested[place], flagged[place], len(self.scheme))
        pair, count = worst_pair(table, self.scheme.classes)
        return {
            **{name: row[name] for name in ("patch_id", "location_id", "tile", "acquisition", "split")},
            "pixels": pixels, "flagged": worst, "share_flagged": worst / pixels if pixels else None,
            "mean_confidence": float(one.joint[place][judged].mean()) if pixels else None,
            "worst_pair": pair, "pair_pixels": count,
            "map": f"{FOLDER}/{file_name(row['patch_id'])}.tif" if self.config.maps else "",
        }  # fmt: skip

    def _reference(self) -> dict[str, Any] | None:
        if self.other is None:
            return None
        store = self.other.store
        return {"path": str(store.path), "digest": store.digest, "scheme": self.other.scheme.name, **self.coverage}

    def _cleanlab(self, limits: Thresholds) -> dict[str, Any] | None:
        self.say("asking cleanlab ...")
        return second_opinion.compare(self.auditor, self.todo, self.load, limits, self.judges)

    # --- what people look at ------------------------------------------------------------------------------------------

    def _tables(self, classes: Classes) -> None:
        names = self.scheme.classes
        write_text(self.out / "classes.csv", write_rows(classes.rows(names)))
        rows = [
            {"given": names[k], **dict(zip((*names, "not sure"), counts, strict=True))}
            for k, counts in enumerate(classes.pairs.tolist())
        ]
        write_text(self.out / "confusion.csv", write_rows(rows))

    def _pictures(self, classes: Classes, limits: Thresholds, tiles: Tiles) -> None:
        title = f"What is suggested, % of the given class\n(probability ≥ {self.config.confident:g})"
        write_bytes(self.out / "confusion.png", png(suggestions(classes.pairs[:, :-1], self.scheme.classes, title)))
        shown = self._worst(limits, tiles)
        if shown:
            beside = None
            if shown[0].other is not None:
                beside = ("clean label", self.scheme) if self.store.has_clean else ("reference", self.other.scheme)
            write_bytes(self.out / "worst.png", png(contact_sheet(shown, self.scheme, beside)))

    def _worst(self, limits: Thresholds, tiles: Tiles) -> list[Tile]:
        """The first of the ranking: one season of a place, and of one location half the sheet at most."""
        found: dict[tuple[str, str], tuple[Any, ...]] = {}
        for rank, tile in enumerate(tiles.ranked()[: 50 * SHOWN].tolist(), start=1):
            number, row = tiles.where(tile)
            one = self.load(self.todo[number])
            where = one.rows[row]["location_id"], one.rows[row]["tile"]
            if where not in found and limits.flagged(one)[row].any():
                found[where] = rank, number, row
            if len(_spread(list(found))) >= SHOWN:
                break
        chosen = _spread(list(found)) or list(found)
        chosen += [where for where in found if where not in chosen]
        return [
            self._tile(*found[where], limits) for where in sorted(chosen[:SHOWN], key=lambda where: found[where][0])
        ]

    def _tile(self, rank: int, number: int, place: int, limits: Thresholds) -> Tile:
        one = self.load(self.todo[number])
        flagged, suggested = limits.flagged(one), suggested_of(one, self.config.confident)
        line, other = self._line(one, place, flagged, suggested), None
        for verdict in list(self.judges(one).values())[:1]:
            other = verdict.reference[place]
        said = f"{line['share_flagged']:.0%} of its labels flagged, mean confidence {line['mean_confidence']:.2f}"
        said += f", mostly {line['worst_pair']}" if line["worst_pair"] else ""
        return Tile(
            title=f"{rank}.  {one.rows[place]['patch_id']}",
            line=said,
            views=self._views(number, place, one.valid[place]),
            given=one.label[place],
            suggested=suggested[place],
            suspicion=np.where(one.judged[place], 1 - one.joint[place], np.nan),
            flagged=flagged[place],
            other=other,
        )

    def _views(self, number: int, place: int, valid: np.ndarray) -> dict[str, np.ndarray]:
        batch, shown = read(self.store, self.todo[number], Wanted.of(self.store)), {}
        for name in optical_first(batch.images):
            pixels, bands = batch.images[name][place].numpy(), self.store.bands[name]
            physical = sensor(name).decode(pixels, bands) if self.store.encoding == "uint8" else pixels
            shown[sensor(name).title] = composite(name, bands, physical, valid)
        return shown


def _spread(places: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The places of (location, tile) that are not the fifth or later of their location."""
    seen: dict[str, int] = {}
    kept = []
    for location, tile in places:
        seen[location] = seen.get(location, 0) + 1
        if seen[location] <= SHOWN // 2:
            kept.append((location, tile))
    return kept


def _flagged(limits: Thresholds, counts: np.ndarray) -> dict[str, Any]:
    pixels = int(counts[:, : limits.cut].sum())
    return {
        "pixels": pixels, "share": pixels / int(counts.sum()),
        "confidence_below": float(decoded(np.array([min(limits.cut, CODES - 1)], np.uint16))[0]),
    }  # fmt: skip
