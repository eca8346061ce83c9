"""cleanlab's opinion of the same pixels: its segmentation scores beside ours, on as many pixels as that library can hold."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cromss.auditing.network import Auditor
from cromss.auditing.tally import Thresholds, Verdict
from cromss.auditing.walk import Group, Seen, part, read
from cromss.data.assembly import Wanted
from cromss.data.patch import Batch
from cromss.landcover import IGNORE
from cromss.maps.model import mean_log_probabilities

LIMIT = 128 * 2**20  # bytes of probabilities, float32; cleanlab makes some five copies of them
_BATCH = 4  # patches the network sees at a time


def installed() -> bool:
    """Whether cleanlab can be asked."""
    return importlib.util.find_spec("cleanlab") is not None


def require() -> None:
    """Raises ValueError, naming the extra, where it is not installed."""
    if not installed():
        raise ValueError("--cleanlab: cleanlab is not installed: pip install 'cromss[audit]', or leave --cleanlab out")


def compare(
    auditor: Auditor, todo: Sequence[Group], seen: Callable[[Group], Seen], limits: Thresholds,
    judges: Callable[[Seen], dict[str, Verdict]], limit: int = LIMIT,
) -> dict[str, Any] | None:  # fmt: skip
    """Rank correlation of the pixels' scores and overlap of the flags, on row groups from all over the store until their
    probabilities fill `limit` bytes. None where no label of them is judged.

    cleanlab is given the mean of the modalities' probabilities; its score of a pixel is that of the given label, its flags are
    confident learning's. Where a judge is at hand: the precision of its flags, and of as many of ours.
    """
    require()
    probabilities, labels, own, judged = _sample(auditor, todo, seen, judges, limit)
    if not labels.size:
        return None
    scores, flags = _cleanlab(labels, probabilities)
    ours = own < limits.cut
    number = int(flags.sum())
    same = _least(own, number)
    both = int((ours & flags).sum())
    return {
        "pixels": int(labels.size),
        "spearman": _spearman(own.astype(np.float64), scores),
        "ours": int(ours.sum()),
        "theirs": number,
        "both": both,
        "ours_also_theirs": both / int(ours.sum()) if ours.any() else None,
        "by_chance": number / labels.size,
        "overlap_at_their_number": int((same & flags).sum()) / number if number else None,
        "precision": {
            name: {
                "theirs": _share(wrong[flags & known]), "as_many_of_ours": _share(wrong[same & known]),
                "rate": _share(wrong[known]),
            }
            for name, (wrong, known) in judged.items()
        },
    }  # fmt: skip


def _sample(
    auditor: Auditor, todo: Sequence[Group], seen: Callable[[Group], Seen],
    judges: Callable[[Seen], dict[str, Verdict]], limit: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:  # fmt: skip
    """Probabilities (P, A) float32, labels (P,) as numbers of `answers`, codes of our confidence (P,), and by judge (wrong,
    known) (P,) bool."""
    wanted = Wanted.of(auditor.store, {name: auditor.model.bands(name) for name in auditor.modalities})
    room = limit // (4 * len(auditor.answers))
    parts: list[tuple[np.ndarray, ...]] = []
    verdicts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for index in np.random.default_rng(1).permutation(len(todo)):
        group, height_width = todo[index], auditor.store.size[0] * auditor.store.size[1]
        rows = min(group.rows, room // height_width)
        if rows < 1:
            break
        batch, kept = read(auditor.store, Group(group.block, group.slot, rows), wanted), seen(group)
        mean = np.concatenate([_mean(auditor, part(batch, first, _BATCH)) for first in range(0, rows, _BATCH)])
        labels = auditor.labels(batch).numpy()
        where = labels != IGNORE
        parts.append((np.moveaxis(mean, 1, -1)[where], labels[where], kept.code[:rows][where]))
        for name, verdict in judges(kept).items():
            wrong, known = verdict.wrong(kept.label)[:rows][where], verdict.known(kept)[:rows][where]
            verdicts.setdefault(name, []).append((wrong, known))
        room -= rows * height_width
    if not parts:
        return np.zeros((0, len(auditor.answers)), np.float32), np.zeros(0, np.uint8), np.zeros(0, np.uint16), {}
    probabilities, labels, codes = (np.concatenate(one) for one in zip(*parts, strict=True))
    judged = {name: tuple(np.concatenate(one) for one in zip(*found, strict=True)) for name, found in verdicts.items()}
    return probabilities, labels, codes, judged


def _mean(auditor: Auditor, batch: Batch) -> np.ndarray:
    return mean_log_probabilities(auditor.logits(batch)).exp().cpu().numpy()


def _cleanlab(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Score (P,), low = suspicious, and flag (P,). All pixels as one image of one line: the library looks at each alone, and
    cannot leave unlabelled ones out."""
    from cleanlab.segmentation.filter import find_label_issues
    from cleanlab.segmentation.rank import get_label_quality_scores

    given = labels.astype(np.int64)[None, None]
    shaped = np.ascontiguousarray(probabilities.T)[None, :, None]
    shaped = shaped / shaped.sum(1, keepdims=True)
    _, scores = get_label_quality_scores(given, shaped, method="softmin", verbose=False)
    flags = find_label_issues(given, shaped, n_jobs=1, verbose=False, batch_size=shaped.size + 1)
    return scores[0, 0], flags[0, 0]


def _least(codes: np.ndarray, number: int) -> np.ndarray:
    """The `number` pixels of least confidence; of those that tie, the first."""
    chosen = np.zeros(codes.size, bool)
    chosen[np.argsort(codes, kind="stable")[:number]] = True
    return chosen


def _spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    from scipy.stats import rankdata

    ranks = [rankdata(values) for values in (one, other)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(ranks)[0, 1])


def _share(flags: np.ndarray) -> float | None:
    return float(flags.mean()) if flags.size else None
