"""Zero-shot: what a class map does to predictions, and what a perfect network scores through it."""

import json

import numpy as np
import pytest
import torch
from tiny import TINY

from cromss.config import resolve
from cromss.data.store import PatchStore
from cromss.data.stream import open_rows
from cromss.landcover import DFC2020, DYNAMIC_WORLD, IGNORE, OSM, SCHEMES, SSL4EO_DW, TERRAMESH, ClassMap, class_map
from cromss.networks.scaling import MeanStd
from cromss.settings import overlay
from cromss.training import segmenter_file, zero_shot
from cromss.training.downstream import result_of, score
from cromss.training.pretraining import build, contracts_for, inputs_for
from cromss.training.state import Inputs
from cromss.training.zero_shot import Mapped


class Says(torch.nn.Module):
    """A network whose logits are what it was given, whatever the image."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.said = logits

    def logits(self, modality: str, image: torch.Tensor) -> torch.Tensor:
        return self.said


def test_dynamic_world_means_all_eight_classes_of_the_contest_and_snow_means_none() -> None:
    found = class_map(DYNAMIC_WORLD, DFC2020)
    assert (found.missing, found.unused) == ((), ("snow and ice",))
    names = {own: [DYNAMIC_WORLD.classes[i] for i in parts]
             for own, parts in zip(DFC2020.classes, found.sources, strict=True)}  # fmt: skip
    assert names == {
        "water": ["water"], "trees": ["trees"], "grass": ["grass"], "wetland": ["flooded vegetation"],
        "crops": ["crops"], "shrub": ["shrub and scrub"], "urban": ["built"], "barren": ["bare"],
    }  # fmt: skip


def test_grass_and_shrub_are_both_rangeland() -> None:
    found = class_map(DYNAMIC_WORLD, TERRAMESH)
    assert found.sources[TERRAMESH.classes.index("rangeland")] == (2, 5)
    assert (found.missing, found.unused) == ((), ())


def test_schemes_of_the_same_classes_need_no_row_and_the_coding_of_a_file_does_not_matter() -> None:
    assert class_map(SSL4EO_DW, DYNAMIC_WORLD).sources == tuple((i,) for i in range(9))
    assert class_map(SSL4EO_DW, DFC2020).sources == class_map(DYNAMIC_WORLD, DFC2020).sources


def test_an_unknown_pair_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no class map from osm to dfc2020.*dynamic-world to terramesh"):
        class_map(OSM, DFC2020)


def test_every_row_of_the_table_names_classes_that_exist() -> None:
    from cromss.landcover import _MEANINGS

    for (own, other), row in _MEANINGS.items():
        assert set(row) <= set(SCHEMES[own].classes)
        assert set(row.values()) <= set(SCHEMES[other].classes)


def test_probabilities_of_what_means_the_same_are_added_up() -> None:
    """Probabilities .3, .3, .4 of grass, shrub, trees: trees are the likeliest class, rangeland (.6) is the answer. A
    class without a counterpart, however likely, is no answer; one that nothing means has probability 0."""
    source = DYNAMIC_WORLD
    by_hand = ClassMap(source, DFC2020, ((2, 5), (1,), (), (), (), (), (), ()))
    probabilities = torch.zeros(1, 9, 1, 2)
    probabilities[0, [2, 5, 1], 0, 0] = torch.tensor([0.3, 0.3, 0.4])
    probabilities[0, [8, 1, 2], 0, 1] = torch.tensor([0.9, 0.08, 0.02])
    said = Mapped(Says(probabilities.log()), "s2", by_hand)(torch.zeros(1, 3, 1, 2))
    torch.testing.assert_close(said.exp()[0, :3, 0], torch.tensor([[0.6, 0.02], [0.4, 0.08], [0.0, 0.0]]))
    assert said.argmax(1).tolist() == [[[0, 1]]]


def test_a_network_that_is_sure_of_a_class_without_a_counterpart_still_gives_its_best_answer() -> None:
    """Probabilities far below what float32 can hold beside 1."""
    logits = torch.tensor([0.0, 50.0, 0, 0, 0, 0, 0, 0, 500.0]).view(1, 9, 1, 1)
    assert Mapped(Says(logits), "s2", class_map(DYNAMIC_WORLD, DFC2020))(logits).argmax(1).item() == 1


class Truth(torch.nn.Module):
    """Answers each batch with the reference, as logits of Dynamic World."""

    def __init__(self, store: PatchStore, split: str, back: list[int], batch_size: int) -> None:
        super().__init__()
        self.rows = iter(open_rows(store, split=split, batch_size=batch_size))
        self.back = torch.tensor([*back, *[0] * (256 - len(back))])

    def logits(self, modality: str, image: torch.Tensor) -> torch.Tensor:
        labels = next(self.rows).labels.long()
        return 9.0 * torch.nn.functional.one_hot(self.back[labels], 9).permute(0, 3, 1, 2).float()


def scored(worlds, classes: ClassMap, back: list[int]) -> dict:
    store, config = PatchStore.open(worlds[1]), resolve(TINY).transfer
    truth = Mapped(Truth(store, "test", back, config.batch_size), "s2", classes)
    inputs = Inputs({"s2": store.bands["s2"]}, store.encoding, MeanStd())
    counts, _ = score(truth, config, store, inputs, "s2", "test", torch.device("cpu"))
    return result_of(counts, store, config, "s2", "zero_shot", 0)


def test_the_truth_scores_all_of_it(worlds) -> None:
    store = PatchStore.open(worlds[1])
    classes = class_map(DYNAMIC_WORLD, store.scheme)
    found = scored(worlds, classes, [parts[0] for parts in classes.sources])
    assert (found["oa"], found["aa"], found["miou"]) == (1, 1, 1)


def test_a_class_that_nothing_means_scores_zero_and_the_others_do_not_suffer(worlds) -> None:
    store = PatchStore.open(worlds[1])
    whole = class_map(DYNAMIC_WORLD, store.scheme)
    counts = np.array(scored(worlds, whole, [parts[0] for parts in whole.sources])["confusion"]).sum(1)
    lost = int(counts.argmax())
    without = ClassMap(whole.source, whole.target, tuple(() if k == lost else p for k, p in enumerate(whole.sources)))
    assert without.missing == (store.scheme.classes[lost],)
    found = scored(worlds, without, [parts[0] for parts in whole.sources])
    assert found["iou"][lost] == 0
    assert found["oa"] == pytest.approx(1 - counts[lost] / counts.sum())


@pytest.mark.parametrize("fusion", [{"kind": "single", "modality": "s2"}, {"kind": "late"},
                                    {"kind": "middle", "decoder_norm": "per_modality"}])  # fmt: skip
def test_the_whole_network_comes_back_from_its_file(worlds, tmp_path, fusion) -> None:
    config, store = resolve(overlay(TINY, {"model": {"fusion": fusion}})), PatchStore.open(worlds[0])
    network = build(config, inputs_for(config, store), len(store.scheme)).eval()
    segmenter_file.save(tmp_path, network, segmenter_file.card(config, contracts_for(config, store), store))
    again, card = segmenter_file.load(tmp_path / segmenter_file.NAME)
    assert (card.scheme, card.bands["s2"]) == (store.scheme.name, store.bands["s2"])
    image = torch.rand(2, len(store.bands["s2"]), 32, 32)
    torch.testing.assert_close(again.logits("s2", image), network.logits("s2", image), rtol=0, atol=0)


@pytest.mark.parametrize("protocol", ["holdout", "two_fold"])
def test_a_run_scores_every_labelled_pixel_of_its_splits_once_and_is_not_repeated(worlds, tmp_path, protocol) -> None:
    config, (data, downstream) = resolve(TINY), map(PatchStore.open, worlds)
    network = build(config, inputs_for(config, data), len(data.scheme))
    segmenter_file.save(tmp_path, network, segmenter_file.card(config, contracts_for(config, data), data))
    judged = resolve(overlay(TINY, {"transfer": {"protocol": {"kind": protocol}}})).transfer
    asked = {"modality": "s1", "segmenter": tmp_path / segmenter_file.NAME}
    found = zero_shot.zero_shot(judged, downstream, tmp_path / "out", **asked)
    splits = ["test"] if protocol == "holdout" else ["test", "train"]
    labelled = sum(int((row.labels != IGNORE).sum() - (0 if row.valid is None else
                       ((row.labels != IGNORE) & ~row.valid).sum()))
                   for split in splits for row in open_rows(downstream, split=split, batch_size=8))  # fmt: skip
    assert np.sum(found["confusion"]) == labelled
    assert (found["mode"], found["repeat"], found["missing"]) == ("zero_shot", 0, [])
    (tmp_path / segmenter_file.NAME).unlink()
    assert zero_shot.zero_shot(judged, downstream, tmp_path / "out", **asked) == json.loads(json.dumps(found))


def test_what_is_no_whole_network_is_refused_by_name(tmp_path) -> None:
    with pytest.raises(ValueError, match="no such file; it would hold the whole pretrained network"):
        segmenter_file.load(tmp_path / "absent.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="is no safetensors file"):
        segmenter_file.load(tmp_path / "torn.safetensors")
