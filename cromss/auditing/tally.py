"""Counts over the whole set: the threshold of the flags, that of eq. 3, and how well suspicion finds what a judge calls wrong.

Everything is counted by the 16-bit code of the confidence, so no pixel is held and nothing is drawn at random.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cromss.auditing.scores import CODES, decoded, encoded
from cromss.auditing.walk import Seen
from cromss.landcover import IGNORE


@dataclass(frozen=True)
class Thresholds:
    """cut: a label is flagged where the code of its joint confidence is below it. w: of eq. 3, one for every class (where
    they share it: the same). reached: whether a class has one; without, its weight is 0."""

    cut: int
    w: np.ndarray
    reached: np.ndarray
    plain: bool = False  # the weight is the confidence itself

    def flagged(self, seen: Seen) -> np.ndarray:
        """(R, H, W) bool."""
        return seen.judged & (seen.code < self.cut)

    def weights(self, seen: Seen) -> np.ndarray:
        """W_l = min(1, F'_l / w) (eq. 3), float32; 0 where no label is judged."""
        if self.plain:
            return np.where(seen.judged, seen.joint, np.float32(0))
        label = np.where(seen.judged, seen.label, 0)
        w = self.w[label]
        weight = np.where(w > 0, seen.joint / np.where(w > 0, w, 1), 1).clip(max=1) * self.reached[label]
        return np.where(seen.judged, weight, 0).astype(np.float32)


def thresholds(counts: np.ndarray, flagged: float, alpha: float, per_class: bool) -> Thresholds:
    """From counts (K, CODES) by class and code.

    At most the share `flagged` is flagged, from the least confidence up: a code is flagged with all its pixels or not at
    all, so that where all labels are trusted alike none is. The k of eq. 3 is that of `objective.weights.label_weights`.
    """
    whole = counts.sum(0)
    n = int(whole.sum())
    cut = int(np.searchsorted(whole.cumsum(), np.floor(flagged * n), side="right"))
    if per_class:
        totals = counts.sum(1)
        ranks = np.floor(totals.astype(np.float32) * np.float32(alpha)).astype(np.int64)
        w = np.array([_kth(one, rank) for one, rank in zip(counts, ranks, strict=True)], np.float32)
        return Thresholds(cut, w, ranks > 0, plain=alpha == 0)
    rank = max(1, int(np.floor(alpha * n)))
    return Thresholds(cut, np.full(len(counts), _kth(whole, rank), np.float32), np.ones(len(counts), bool))


def _kth(counts: np.ndarray, rank: int) -> np.float32:
    """The rank-th highest confidence, as its code's least value."""
    reaching = counts[::-1].cumsum()[::-1]
    found = max(0, int((reaching >= max(rank, 1)).sum()) - 1)
    return decoded(np.array([found], np.uint16))[0]


def by_class(seen: Seen, classes: int) -> np.ndarray:
    """Counts (K, CODES) of the judged labels of a row group."""
    chosen = seen.label[seen.judged].astype(np.int64) * CODES + seen.code[seen.judged]
    return np.bincount(chosen, minlength=classes * CODES).reshape(classes, CODES)


# --- against a judge --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What somebody else says of a row group: `reference` (R, H, W) in a scheme where `table` (256,) says what the store's
    classes are; IGNORE where nobody knows."""

    reference: np.ndarray
    table: np.ndarray

    def known(self, seen: Seen) -> np.ndarray:
        """Where given label and reference can be compared."""
        return seen.judged & (self.reference != IGNORE) & (self.table[seen.label] != IGNORE)

    def wrong(self, labels: np.ndarray) -> np.ndarray:
        """Where these labels, of the store's scheme, say something else."""
        return self.table[labels] != self.reference


OWN = np.arange(256, dtype=np.uint8)  # the table of a judge who speaks the store's own scheme


def truth(seen: Seen) -> Verdict | None:
    """The clean labels of a synthetic store."""
    return None if seen.clean is None else Verdict(np.where(seen.valid, seen.clean, np.uint8(IGNORE)), OWN)


class Score:
    """Collects how suspicion and suggestions fare against a judge."""

    def __init__(self) -> None:
        self.codes: dict[str, np.ndarray] = {}  # by "joint" or modality: counts (2, CODES) of right and of wrong labels
        self.suggested = np.zeros(
            4, np.int64
        )  # pixels with a differing suggestion; given right; suggestion right; flagged
        self.on_flagged = np.zeros(3, np.int64)  # flagged pixels with a suggestion; given right; suggestion right

    def count(self, seen: Seen, verdict: Verdict) -> None:
        """Right and wrong labels by confidence."""
        known = verdict.known(seen)
        wrong = verdict.wrong(seen.label)[known].astype(np.int64)
        for name, codes in {"joint": seen.code, **{m: encoded(f) for m, f in seen.confidence.items()}}.items():
            found = np.bincount(wrong * CODES + codes[known], minlength=2 * CODES).reshape(2, CODES)
            self.codes[name] = self.codes.get(name, 0) + found

    def suggestions(self, seen: Seen, verdict: Verdict, flagged: np.ndarray, suggested: np.ndarray) -> None:
        """Whether what is suggested is right where the given label is not. `suggested` (R, H, W), IGNORE where unsure."""
        known = verdict.known(seen) & (suggested != IGNORE)
        known &= verdict.table[suggested] != IGNORE
        given, other = ~verdict.wrong(seen.label), ~verdict.wrong(suggested)
        differ = known & (verdict.table[suggested] != verdict.table[seen.label])
        self.suggested += [differ.sum(), (differ & given).sum(), (differ & other).sum(), (differ & flagged).sum()]
        both = known & flagged
        self.on_flagged += [both.sum(), (both & given).sum(), (both & other).sum()]

    def result(self, cut: int) -> dict[str, Any] | None:
        """None where nothing could be compared. `precision` of the flagged pixels beside the `rate` of wrong labels."""
        if not self.codes or not self.codes["joint"].sum():
            return None
        right, wrong = self.codes["joint"]
        flagged, found = int(right[:cut].sum() + wrong[:cut].sum()), int(wrong[:cut].sum())
        total = int(wrong.sum())
        return {
            "pixels": int(right.sum()) + total,
            "rate": total / (int(right.sum()) + total),
            "flagged": flagged,
            "precision": found / flagged if flagged else None,
            "recall": found / total if total else None,
            "auroc": {name: auroc(*counts) for name, counts in self.codes.items()},
            "auprc": {name: average_precision(*counts) for name, counts in self.codes.items()},
            "suggestions_that_differ": _of(self.suggested[:3]),
            "suggestions_on_flagged": _of(self.on_flagged),
        }


def _of(counts: np.ndarray) -> dict[str, Any]:
    pixels, given, other = map(int, counts)
    return {
        "pixels": pixels,
        "given_right": given / pixels if pixels else None,
        "suggestion_right": other / pixels if pixels else None,
    }


def auroc(right: np.ndarray, wrong: np.ndarray) -> float | None:
    """How often a wrong label has less confidence than a right one, ties counted half (`training.metrics.auroc`, of counts
    by rising confidence). None where there is no pair."""
    n, m = int(right.sum()), int(wrong.sum())
    if not n or not m:
        return None
    above = n - right.cumsum() + 0.5 * right
    return float((wrong * above).sum() / n / m)


def average_precision(right: np.ndarray, wrong: np.ndarray) -> float | None:
    """Area under the precision-recall curve of finding wrong labels by falling suspicion (`training.metrics`, of counts by
    rising confidence). None without a wrong label."""
    if not wrong.sum():
        return None
    found = wrong.cumsum()
    looked = np.maximum(found + right.cumsum(), 1)
    return float((wrong * found / looked).sum() / found[-1])


# --- classes and pairs ------------------------------------------------------------------------------------------------


class Classes:
    """Per given class: judged pixels, flagged, sums of confidence and weight; and given x suggested, the last column being
    "not sure"."""

    def __init__(self, count: int) -> None:
        self.sums = np.zeros((count, 4))
        self.pairs = np.zeros((count, count + 1), np.int64)
        self.flagged_pairs = np.zeros((count, count + 1), np.int64)

    def add(self, seen: Seen, flagged: np.ndarray, weights: np.ndarray, suggested: np.ndarray) -> None:
        count = len(self.sums)
        label = seen.label[seen.judged].astype(np.int64)
        columns = (np.ones(label.size), flagged[seen.judged], seen.joint[seen.judged], weights[seen.judged])
        for place, values in enumerate(columns):
            self.sums[:, place] += np.bincount(label, values, minlength=count)
        self.pairs += pairs(seen.label, suggested, seen.judged, count)
        self.flagged_pairs += pairs(seen.label, suggested, flagged, count)

    def rows(self, names: tuple[str, ...]) -> list[dict[str, Any]]:
        """One row a class; means are None where a class has no judged pixel."""
        total = max(self.sums[:, 0].sum(), 1)
        found = []
        for number, name in enumerate(names):
            pixels, flagged, confidence, weight = self.sums[number].tolist()
            other = self.pairs[number, :-1].copy()
            other[number] = 0
            found.append({
                "class": name, "pixels": int(pixels), "share": pixels / total, "flagged": int(flagged),
                "share_flagged": flagged / pixels if pixels else None,
                "mean_confidence": confidence / pixels if pixels else None,
                "mean_weight": weight / pixels if pixels else None,
                "suggested_otherwise": int(other.sum()),
                "most_often": names[int(other.argmax())] if other.any() else "",
            })  # fmt: skip
        return found


def pairs(given: np.ndarray, suggested: np.ndarray, where: np.ndarray, count: int) -> np.ndarray:
    """Counts (K, K + 1) of given class and suggested class; the last column where nothing is suggested."""
    column = np.where(suggested == IGNORE, count, suggested)[where].astype(np.int64)
    index = given[where].astype(np.int64) * (count + 1) + column
    return np.bincount(index, minlength=count * (count + 1)).reshape(count, count + 1)


def worst_pair(table: np.ndarray, names: tuple[str, ...]) -> tuple[str, int]:
    """`crops → trees` and its pixels: the most frequent suggestion of another class; ("", 0) where there is none."""
    other = table[:, :-1].copy()
    np.fill_diagonal(other, 0)
    if not other.any():
        return "", 0
    given, suggested = np.unravel_index(int(other.argmax()), other.shape)
    return f"{names[given]} → {names[suggested]}", int(other[given, suggested])


def settled(scores: Mapping[str, Score], cut: int) -> dict[str, dict[str, Any] | None]:
    """By judge."""
    return {name: score.result(cut) for name, score in scores.items()}
