"""The meter of the labels' noise: what it measures, on how many pixels, and that it is read in every epoch."""

import json

import pytest
import torch
from tiny import TINY
from torch._subclasses.fake_tensor import FakeTensorMode

from cromss.config import resolve
from cromss.data.patch import Batch
from cromss.data.store import PatchStore
from cromss.objective.crossmodal import CrossModalObjective, ObjectiveConfig
from cromss.objective.methods import RIVALS
from cromss.settings import validate
from cromss.training import pretraining
from cromss.training.noise import JOURNALLED, NoiseMeter

KINDS = ["cromss", "plain", "oracle", *(rival.model_fields["kind"].default for rival in RIVALS)]


def scene(rows=2, size=8, classes=3, seed=0, valid=None):
    """(batch, logits): a third of the labels wrong, some ignored; logits that know the truth a little."""
    draw = torch.Generator().manual_seed(seed)
    clean = torch.randint(classes, (rows, size, size), generator=draw, dtype=torch.uint8)
    wrong = torch.rand(clean.shape, generator=draw) < 0.33
    labels = torch.where(wrong, (clean + 1) % classes, clean)
    labels[:, 0, :3] = 255
    truth = torch.nn.functional.one_hot(clean.long(), classes).movedim(-1, 1)
    logits = {m: truth * k + torch.randn(truth.shape, generator=draw) for m, k in (("s1", 0.5), ("s2", 2.0))}
    keys = torch.zeros(rows, dtype=torch.int64)
    return Batch({}, {}, labels, ["p"] * rows, keys, keys, clean=clean, valid=valid), logits


def config(kind="cromss", **settings):
    return validate(ObjectiveConfig, {"method": {"kind": kind}, **settings})


def metered(settings, batch, logits, alpha=0.5, pixels=200_000):
    meter = NoiseMeter(settings, pixels)
    meter(batch, logits, alpha, 1.0)
    return meter


def test_a_hand_worked_scene():
    # Four pixels of two classes, label 0; truth 0 0 0 1. One modality gives p_0 = .9 .2 .8 .4, so F = .9 .2 .8 .4.
    # The wrong one (.4) is below .9 and .8 and above .2: AUROC 2/3. Among 1 - F = .1 .8 .2 .6, sorted .8 .6 .2 .1, the
    # wrong one comes second: precision 1/2 when it is found.
    given = torch.tensor([[[0.9, 0.2], [0.8, 0.4]]])
    labels = torch.zeros(1, 2, 2, dtype=torch.uint8)
    clean = torch.tensor([[[0, 0], [0, 1]]], dtype=torch.uint8)
    keys = torch.zeros(1, dtype=torch.int64)
    batch = Batch({}, {}, labels, ["a"], keys, keys, clean=clean)
    meter = metered(config(), batch, {"s2": torch.stack([given, 1 - given], 1).log()}, alpha=0.5)
    found = meter.read()
    assert found == {
        "noise/rate": 0.25,
        "noise/s2/auroc_F": pytest.approx(2 / 3),
        "noise/s2/auroc_F_enhanced": pytest.approx(2 / 3),  # alone, F' = F
        "noise/s2/auroc_W": pytest.approx(2 / 3),  # w is the second of four, .8: W = 1 .25 1 .5
        "noise/s2/auprc_F_enhanced": pytest.approx(1 / 2),
        "noise/s2/auprc_W": pytest.approx(1 / 2),
    }
    assert meter.read() == {}  # nothing was seen since
    assert meter.result() is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("enhancement", [{"kind": "agreement"}, {"kind": "trust", "trust": {"s1": 0.0}}])
def test_it_measures_the_runs_own_enhancement_and_weights(kind, enhancement):
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    valid[1, 5:] = False
    batch, logits = scene(valid=valid)
    settings = config(kind, enhancement=enhancement, per_class=True)
    entry = metered(settings, batch, logits).result()["s2"]
    weighs = kind in ("cromss", "small_loss", "co_teaching", "jocor")
    own = CrossModalObjective(settings if weighs else config("cromss", enhancement=enhancement, per_class=True))
    maps = own.select(logits, batch.labels, alpha=0.5, gamma=1.0, valid=valid)
    usable = valid & (batch.labels != 255)
    right = (batch.labels == batch.clean)[usable]
    for name, values in (("F", maps.own), ("F_enhanced", maps.confidence), ("W", maps.label_weights)):
        good, bad = values["s2"][usable][right], values["s2"][usable][~right]
        ahead = (good[:, None] > bad).sum() + 0.5 * (good[:, None] == bad).sum()
        assert entry[f"auroc_{name}"] == pytest.approx(ahead.item() / (len(good) * len(bad)))
    assert sum(entry["histogram"]["wrong"]) == int((~right).sum())


def test_its_pixels_are_bounded_and_drawn_from_several_batches():
    batch, logits = scene(rows=4, size=32)
    meter = NoiseMeter(config(), pixels=1000)
    for _ in range(9):
        meter(batch, logits, 0.5, 1.0)
    sampled = meter.result()
    assert 900 < sampled["pixels"] <= 1000
    assert [len(values) for values in meter._kept["right"]] == [250] * 4
    whole = metered(config(), batch, logits).result()
    assert sampled["s2"]["auroc_F"] == pytest.approx(whole["s2"]["auroc_F"], abs=0.06)


def test_without_truth_there_is_nothing_to_say():
    batch, logits = scene()
    meter = metered(config(), Batch({}, {}, batch.labels, batch.ids, batch.epochs, batch.keys), logits)
    assert meter.read() == {}
    assert meter.result() is None


def test_where_no_label_is_wrong_only_the_rate_is_journalled():
    batch, logits = scene()
    right = Batch({}, {}, batch.clean, batch.ids, batch.epochs, batch.keys, clean=batch.clean)
    assert metered(config(), right, logits).read() == {"noise/rate": 0.0}


def test_looking_reads_nothing_back_from_the_device():
    with FakeTensorMode(allow_non_fake_inputs=True):
        labels, keys = torch.zeros(2, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
        batch = Batch({}, {}, labels, ["a", "b"], keys, keys, clean=labels, valid=torch.ones(2, 8, 8, dtype=torch.bool))
        logits = {name: torch.randn(2, 5, 8, 8) for name in ("s1", "s2")}
        metered(config(), batch, logits)
        metered(config(), batch, logits, pixels=40)


ELR = {"objective": {"method": {"kind": "elr", "decay": 0.6}}, "optim": {"epochs": 2}, "probe": {"every": 9}}


class Stopped(Exception):
    pass


def pretrain(worlds, out, *layers, stop_after=None):
    journal = []

    def log(step, metrics, epoch):
        journal.append(metrics)
        if epoch == stop_after:
            raise Stopped

    return pretraining.run(resolve(TINY, *layers), PatchStore.open(worlds[0]), out, journal=log), journal


@pytest.fixture(scope="module")
def early_learning(worlds, tmp_path_factory):
    """A whole run of two epochs with ELR: its folder, result and journal."""
    out = tmp_path_factory.mktemp("whole")
    return out, *pretrain(worlds, out, ELR)


def test_every_epoch_of_a_run_journals_its_noise(early_learning):
    out, result, journal = early_learning
    assert len(journal) == 2
    for metrics in journal:
        found = {key for key in metrics if key.startswith("noise/")}
        assert found == {"noise/rate"} | {f"noise/{m}/{key}" for m in ("s1", "s2") for key in JOURNALLED}
    last = result["noise"]
    assert last == json.loads((out / "pretraining.json").read_text())["noise"]
    assert last["s1"]["auroc_F"] == journal[-1]["noise/s1/auroc_F"] != journal[0]["noise/s1/auroc_F"]
    assert all(0 <= last["s1"][key] <= 1 for key in (*JOURNALLED, "auprc_F"))
    assert len(last["s1"]["histogram"]["edges"]) == 41


def test_early_learning_goes_on_bit_identical_with_its_averaged_network(worlds, tmp_path, early_learning):
    _, _, whole = early_learning
    with pytest.raises(Stopped):
        pretrain(worlds, tmp_path, ELR, stop_after=1)
    (rest,) = pretrain(worlds, tmp_path, ELR)[1]
    assert rest["train/extra"] == whole[-1]["train/extra"] != 0
    assert rest["val/loss"] == whole[-1]["val/loss"]
