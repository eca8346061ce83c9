"""Two-fold judgement: every tile is a test tile once."""

import numpy as np
import pytest
from tiny import TINY

from cromss.config import resolve
from cromss.data.store import PatchStore
from cromss.training.downstream import judge


@pytest.fixture(scope="module")
def judged(worlds, tmp_path_factory):
    """{protocol: (result, journal, panels)} of a random encoder."""
    store, found = PatchStore.open(worlds[1]), {}
    for protocol in ("holdout", "two_fold"):
        config, journal = resolve(TINY, {"transfer": {"protocol": {"kind": protocol}}}), []
        out = tmp_path_factory.mktemp(protocol)
        result = judge(
            config.transfer, store, out, modality="s1", mode="frozen", repeat=0, encoder=None,
            architecture=config.model.encoder, scaling=config.model.scaling,
            journal=lambda step, metrics, epoch, into=journal: into.append((step, epoch)),
        )  # fmt: skip
        with np.load(out / "panels.npz") as archive:
            found[protocol] = result, journal, dict(archive)
    return found


def test_two_folds_score_every_labelled_pixel_of_both_splits_once(judged, worlds):
    histogram = PatchStore.open(worlds[1]).manifest.histogram
    pixels = {
        split: {name: count for name, count in counts.items() if name != "unlabelled"}
        for split, counts in histogram.items()
    }
    for protocol, splits in (("holdout", ["test"]), ("two_fold", ["train", "test"])):
        result, _, panels = judged[protocol]
        of_class = np.sum(result["confusion"], axis=1)
        assert of_class.tolist() == [sum(pixels[split].get(name, 0) for split in splits) for name in result["classes"]]
        assert len(panels["prediction"]) == 2 * len(splits)
        assert len(set(panels["ids"])) == 2 * len(splits)


def test_the_second_fold_goes_on_in_the_journal_where_the_first_ended(judged):
    alone, both = judged["holdout"][1], judged["two_fold"][1]
    assert both[: len(alone)] == alone
    steps, epochs = zip(*both, strict=True)
    assert len(both) == 2 * len(alone)
    assert list(steps) == sorted(set(steps))
    assert list(epochs) == sorted(set(epochs))
