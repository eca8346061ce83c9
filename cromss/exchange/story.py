"""What the runs say about an encoder, number by number. What no run says is not said here."""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cromss import provenance
from cromss.data.store import PatchStore
from cromss.files import sha256
from cromss.journal import read_json
from cromss.networks.encoders import EncoderCard
from cromss.networks.in_runs import encoder_in
from cromss.settings import leaves

RECORD, RESULT = "trial.json", "pretraining.json"
SCORES = {"miou": "mIoU", "oa": "OA", "aa": "AA"}
_HYPER = (
    "model.encoder", "model.fusion.kind", "pretraining.kind", "objective.method.kind", "objective.alpha.end",
    "objective.enhancement.kind", "objective.consistency.kind", "objective.smoothing.kind", "objective.scope",
    "objective.per_class", "optim.lr", "optim.batch_size", "optim.epochs", "optim.schedule.kind", "data.augment.crop",
    "data.seasons",
)  # fmt: skip
_OF_LABELS = ("objective.", "model.fusion.")  # keys that a pretraining without labels does not read


@dataclass(frozen=True)
class Judged:
    """The downstream runs of one mode: each score with its mean and deviation over `repeats`, in percent."""

    mode: str
    scheme: str
    head: str
    protocol: str
    repeats: int
    pixels: int  # labelled test pixels of one run
    scores: dict[str, tuple[float, float | None]]


@dataclass(frozen=True)
class Story:
    """Of one encoder. Empty where it comes from no run."""

    run: dict[str, Any] = field(default_factory=dict)  # trial.json, or what there is of it
    scheme: str = ""  # of the noisy labels
    places: int | None = None  # of the training split
    patches: int | None = None
    judged: tuple[Judged, ...] = ()
    judged_on: str = ""  # digest of the downstream store

    @property
    def final(self) -> dict[str, float]:
        return {key: value for key, value in (self.run.get("final") or {}).items() if _number(value)}

    def hyperparameters(self) -> dict[str, Any]:
        """The run's main settings by their dotted keys."""
        flat = leaves(self.run.get("config") or {})
        reads_labels = flat.get("pretraining.kind", "pretrain") == "pretrain"
        return {key: flat[key] for key in _HYPER if key in flat and (reads_labels or not key.startswith(_OF_LABELS))}

    def validation(self, modality: str) -> dict[str, float]:
        """Validation and probe metrics of that modality, and those of the whole network."""
        kinds = ("val/", "probe/")
        others = {key.split("/")[1] for key in self.final if key.startswith(kinds) and key.count("/") > 1} - {modality}
        return {
            key: value for key, value in self.final.items()
            if key.startswith(kinds) and key.split("/")[1] not in others
        }  # fmt: skip

    def noise(self, modality: str) -> dict[str, float]:
        """What the noise meter measured where the truth was known: rate, and how well the weights find wrong labels."""
        found = self.run.get("noise") or {}
        own = {key: value for key, value in (found.get(modality) or {}).items() if _number(value)}
        return {key: found[key] for key in ("rate", "pixels") if _number(found.get(key))} | own

    def metrics(self, modality: str) -> dict[str, float]:
        """All of it, flat, as a file's header has it: shares are fractions, as in the journals."""
        noise = {f"noise/{modality}/{key}": value for key, value in self.noise(modality).items()}
        tested: dict[str, float] = {}
        for one in self.judged:
            for score, (middle, spread) in one.scores.items():
                tested[f"test/{modality}/{one.mode}/{score}"] = middle / 100
                if spread is not None:
                    tested[f"test/{modality}/{one.mode}/{score}_std"] = spread / 100
            tested[f"test/{modality}/{one.mode}/repeats"] = one.repeats
        return self.validation(modality) | noise | tested


def story(folder: Path | None, card: EncoderCard, file: Path, transfers: Sequence[Path] = ()) -> Story:
    """What the run in `folder` and the judgements in `transfers` say about the encoder in `file`.

    Raises ValueError where one of them is about another encoder or store, naming both sides.
    """
    run = _record(folder) if folder else {}
    said = (run.get("provenance") or {}).get("store_digest", "")
    if said and card.store and said != card.store:
        raise ValueError(f"{folder}: was trained on store {said[:12]}, the encoder {file} says {card.store[:12]}")
    places, patches = _counted(run, card)
    results, on = list(run.get("downstream") or []), (run.get("provenance") or {}).get("downstream_digest", "")
    for transfer in transfers:
        more, where = _transfer(transfer, card.modality, file)
        if results and where != on:
            raise ValueError(
                f"--transfer {transfer}: judged on store {where[:12]}, the others on {on[:12]}; give one test set"
            )
        results, on = results + more, where
    judged = tuple(_judged(results, card.modality))
    return Story(run, _scheme(folder, card), places, patches, judged, on if judged else "")


def _record(folder: Path) -> dict[str, Any]:
    run = dict(read_json(folder / RECORD) or {})
    result = read_json(folder / RESULT) or {}
    run.setdefault("pretraining", result)
    for key in ("final", "noise", "seconds"):
        run.setdefault(key, result.get(key))
    return run


def _scheme(folder: Path | None, card: EncoderCard) -> str:
    """The label scheme, as the whole network beside the encoders says it."""
    from cromss.training import segmenter_file

    with contextlib.suppress(ValueError):
        if folder is not None:
            found = segmenter_file.load_card(folder / segmenter_file.NAME)
            return found.scheme if found.store == card.store else ""
    return ""


def _counted(run: Mapping[str, Any], card: EncoderCard) -> tuple[int | None, int | None]:
    """(places, patches) of the training split, from the store itself, if it is where it was and still the same."""
    place = provenance.stores(run)[0] if run.get("config") else ""
    with contextlib.suppress(ValueError, OSError):
        if place and (store := PatchStore.open(place, check=False)).digest == card.store:
            return store.manifest.places.get("train"), store.manifest.patches.get("train")
    return None, None


def _transfer(folder: Path, modality: str, file: Path) -> tuple[list[dict[str, Any]], str]:
    """(downstream runs, digest of their store) of a `cromss transfer`, if it judged this very encoder."""
    run = read_json(folder / RECORD)
    if run is None:
        raise ValueError(f"--transfer {folder}: holds no {RECORD}; give the --out of a cromss transfer")
    paths = leaves(run.get("config") or {})
    judged = paths.get(f"pretraining.paths.{modality}")
    if judged is None:
        return [], (run.get("provenance") or {}).get("downstream_digest", "")
    there = encoder_in(Path(judged), modality) if Path(judged).is_dir() else Path(judged)
    if not there.exists():
        raise ValueError(
            f"--transfer {folder}: judged {judged}, which is not here: whether it is {file} cannot be told"
        )
    if sha256(there) != sha256(file):
        raise ValueError(f"--transfer {folder}: judged another encoder, {judged}, not {file}")
    return list(run.get("downstream") or []), (run.get("provenance") or {}).get("downstream_digest", "")


def _judged(results: Iterable[Mapping[str, Any]], modality: str) -> Iterable[Judged]:
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for one in results:
        if one.get("modality") == modality and all(_number(one.get(score)) for score in SCORES):
            head = " ".join(str(one[key]) for key in ("head", "head_depth") if one.get(key) is not None)
            key = (str(one.get("mode", "")), str(one.get("scheme", "")), head, str(one.get("protocol", "")))
            groups.setdefault(key, []).append(one)
    for (mode, scheme, head, protocol), runs in sorted(groups.items()):
        values = {score: [100 * run[score] for run in runs] for score in SCORES}
        spread = {score: (mean(v), stdev(v) if len(v) > 1 else None) for score, v in values.items()}
        pixels = sum(map(sum, runs[0].get("confusion") or [[0]]))
        yield Judged(mode, scheme, head, protocol, len(runs), int(pixels), spread)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
