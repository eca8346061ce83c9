"""Three modalities from the synthetic Earth to the report: nothing on the way knows how many there are."""

import numpy as np
import pytest
from tiny import TINY

from cromss.data.store import PatchStore
from cromss.networks.encoders import load_card
from cromss.settings import overlay
from cromss.sweep import sweep
from cromss.trials.space import Space, grid

VIEWS = ["s1", "s1d", "s2"]
WORLD = {"seed": "trial", "descending": True, "places": 28, "size": 32, "seasons": 2, "train": 16, "test": 8}
SPACE = Space("three", "Do three run?", {}, {"arm": grid("CromSS-midF")}, "", 1, world=WORLD)
LAYER = {
    "model": {"fusion": {"modalities": VIEWS, "decoder_norm": "per_modality"}},
    "optim": {"epochs": 1},
    "transfer": {"modalities": VIEWS},
    "scaling": {"num_workers": 0},
}


@pytest.fixture(scope="module")
def swept(ray_session, tmp_path_factory):
    out = tmp_path_factory.mktemp("three")
    return out, sweep(SPACE, overlay(TINY, LAYER), None, None, out)


@pytest.mark.timeout(280)
def test_all_three_encoders_are_pretrained_and_judged(swept):
    _, outcome = swept
    [trial] = outcome["trials"]
    assert (trial["status"], trial["reason"]) == ("done", "")
    assert sorted(run["modality"] for run in trial["downstream"]) == VIEWS
    for name in VIEWS:
        card = load_card(trial["folder"] / "encoders" / f"{name}.safetensors")
        assert (card.modality, len(card.bands)) == (name, 13 if name == "s2" else 2)
        assert {f"probe/{name}/miou", f"val/{name}/clean_miou"} & set(trial["final"])
        assert 0 <= trial["noise"][name]["auroc_F"] <= 1


def test_the_store_holds_both_orbits_apart(swept):
    out, _ = swept
    [path] = out.glob("synthetic/*/pretraining")
    store = PatchStore.open(path)
    assert {name: len(bands) for name, bands in store.bands.items()} == {"s1": 2, "s2": 13, "s1d": 2}
    assert store.contract("s1d").product == "Sentinel-1 descending"
    for patch in store.sample(4):
        assert np.abs(patch.images["s1"] - patch.images["s1d"]).mean() > 1  # dB


def test_the_summary_and_the_report_tell_of_the_third(swept):
    _, outcome = swept
    assert "CromSS-midF" in outcome["summary"]
    assert outcome["report"].read_text().count("s1d") + outcome["report"].read_text().count("S1D") > 0
