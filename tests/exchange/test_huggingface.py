"""The model card: its numbers are the runs', its header is valid, and what nobody knows is said to be unknown."""

import json
import re

import pytest
import yaml
from small_encoders import trained

from cromss.exchange.bands import Zero, adapt
from cromss.exchange.formats import Outgoing, format_of
from cromss.exchange.story import Story, story
from cromss.networks.encoders import save_encoder

RUN = {
    "key": "pretrain", "arm": "CromSS-midF", "seed": 0, "seconds": 7260.0,
    "config": {"pretraining": {"kind": "pretrain"}, "model": {"encoder": "tu-test_resnet", "fusion": {"kind": "middle"}},
               "objective": {"method": {"kind": "cromss"}, "alpha": {"end": 0.37}}, "optim": {"lr": 0.00123, "batch_size": 24}},
    "final": {"val/loss": 1.2345, "val/s2/miou": 0.4321, "val/s1/miou": 0.1111, "probe/s2/miou": 0.3456, "train/loss": 9.0},
    "noise": {"rate": 0.207, "pixels": 23844, "s2": {"auroc_W": 0.713, "auprc_W": 0.402, "histogram": {}}},
    "pretraining": {"steps": 1000, "workers": 2, "device": "cuda",
                    "quarantined": [{"shard": "shard-00003.parquet", "patches": 64}]},
    "provenance": {"store_digest": "abc123", "packages": {"torch": "2.13.0"}, "python": "3.11.7",
                   "git": {"revision": "0123456789abcdef", "dirty": True}},
}  # fmt: skip


def result(miou, mode="frozen", repeat=0, modality="s2"):
    scores = {"miou": miou, "oa": miou + 0.1, "aa": miou + 0.05}
    return {"modality": modality, "mode": mode, "repeat": repeat, "head": "pspnet", "head_depth": 3, "protocol": "holdout",
            "scheme": "dfc2020", "confusion": [[100, 3], [4, 93]], **scores}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run's folder with one encoder; (folder, encoder, card)."""
    encoder, card = trained("tu-test_resnet")
    save_encoder(tmp_path / "run" / "encoders" / "s2.safetensors", encoder, card)
    (tmp_path / "run" / "trial.json").write_text(json.dumps(RUN))
    return tmp_path / "run", encoder, card


def transfer(folder, encoder, results, digest="feed" * 16):
    folder.mkdir()
    config = {"pretraining": {"kind": "checkpoint", "paths": {"s2": str(encoder)}}}
    record = {"key": "transfer", "config": config, "downstream": results, "provenance": {"downstream_digest": digest}}
    (folder / "trial.json").write_text(json.dumps(record))
    return folder


def written(out, state, card, told, **options):
    format_of("huggingface").write(out, Outgoing(state, card, told, **options))
    text = (out / "huggingface" / "README.md").read_text()
    return text, yaml.safe_load(text.split("---")[1])


def test_every_number_of_a_run_is_on_the_card(run, tmp_path):
    folder, encoder, card = run
    file = folder / "encoders" / "s2.safetensors"
    results = [result(0.40), result(0.44, repeat=1), result(0.5, "finetuned"), result(0.9, modality="s1")]
    judged = transfer(tmp_path / "judged", file, results)
    told = story(folder, card, file, [judged])
    text, header = written(tmp_path, encoder.state_dict(), card, told, licence="cc-by-4.0")
    for said in (
        "patch store `abc123`", "24,000 (1,000 steps of 24)", "| objective.alpha.end | 0.37 |", "| optim.lr | 0.00123 |",
        "| `val/s2/miou` | 0.4321 |", "| `val/loss` | 1.234 |", "| `probe/s2/miou` | 0.3456 |",
        "| frozen | dfc2020 | pspnet 3 | holdout | 42.00 ± 2.83 | 52.00 ± 2.83 | 47.00 ± 2.83 | 2 | 200 |",
        "| finetuned | dfc2020 | pspnet 3 | holdout | 50.00 | 60.00 | 55.00 | 1 | 200 |",
        "20.7% of the labels were wrong, measured on 23,844", "| label weights W | 0.713 | 0.402 |",
        "2.0 h on 2 worker(s), cuda", "64 patches in 1 damaged shards", "0123456789ab-dirty", "torch 2.13.0",
        "| 0 | B4 | 1363.52 | 1138.85 |", "cc-by-4.0, as stated", "arXiv 2405.01217",
    ):  # fmt: skip
        assert said in text, said
    for other in ("0.1111", "val/s1", "90.00", "train/loss"):  # the other modality's, and what judges nothing
        assert other not in text, other
    results = {one["task"]["name"]: one for one in header["model-index"][0]["results"]}
    assert set(results) == {"dfc2020, encoder frozen", "dfc2020, encoder finetuned"}
    frozen = {metric["type"]: metric["value"] for metric in results["dfc2020, encoder frozen"]["metrics"]}
    assert frozen == {"miou": 42.0, "oa": 52.0, "aa": 47.0}
    assert results["dfc2020, encoder frozen"]["dataset"]["revision"] == "feed" * 16
    assert (header["license"], header["library_name"]) == ("cc-by-4.0", "timm")


def test_the_header_of_the_file_bears_them_too_as_fractions(run, tmp_path):
    folder, encoder, card = run
    file = folder / "encoders" / "s2.safetensors"
    told = story(folder, card, file, [transfer(tmp_path / "judged", file, [result(0.40), result(0.44, repeat=1)])])
    metrics = json.loads(Outgoing(encoder.state_dict(), card, told).header()["metrics"])
    assert metrics["test/s2/frozen/miou"] == pytest.approx(0.42)
    assert metrics["test/s2/frozen/miou_std"] == pytest.approx(0.02 * 2**0.5)
    assert metrics["val/s2/miou"] == 0.4321
    assert metrics["noise/s2/auroc_W"] == 0.713
    assert "val/s1/miou" not in metrics


def test_a_trials_own_judgement_is_told_without_being_asked_for(run, tmp_path):
    folder, _, card = run
    (folder / "trial.json").write_text(json.dumps(RUN | {"downstream": [result(0.25)]}))
    told = story(folder, card, folder / "encoders" / "s2.safetensors")
    assert [(one.mode, one.scores["miou"]) for one in told.judged] == [("frozen", (25.0, None))]


def test_of_an_encoder_without_a_run_nothing_is_invented(tmp_path):
    encoder, card = trained("tu-test_resnet", contract=None, method="", store="", epoch=None)
    card = card.model_copy(update={"seed": None})
    text, header = written(tmp_path, encoder.state_dict(), card, Story())
    numbers, limits = text.split("## Training")[1].split("## Limits")
    assert re.findall("[0-9]+", numbers) == []
    assert len(re.findall("(?i)unknown", numbers)) >= 9
    assert "It was not judged downstream" in limits
    assert "Unknown: nobody stated one" in limits
    assert "model-index" not in header
    assert header["license"] == "unknown"


def test_a_changed_first_convolution_is_on_the_card(tmp_path):
    encoder, card = trained("tu-test_resnet")
    state, made = adapt(encoder.state_dict(), card, (*card.bands, "B11"), Zero())
    text, _ = written(tmp_path, state, made, Story())
    assert "trained on B4, B3, B2, B8; zero: B11 added with weight 0. No number below" in text


def test_what_a_run_is_called_stays_in_its_cell(run, tmp_path):
    folder, encoder, card = run
    odd = "a | b\n---\nlicense: mit\n# <script>"
    (folder / "trial.json").write_text(json.dumps(RUN | {"arm": odd}))
    card = card.model_copy(update={"method": odd})
    told = story(folder, card, folder / "encoders" / "s2.safetensors")
    text, header = written(tmp_path, encoder.state_dict(), card, told)
    assert header["license"] == "unknown"
    assert "<script>" not in text
    assert "\nlicense: mit" not in text.split("---", 2)[2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("store", "was trained on store abc123, the encoder .* says other"),
        ("other encoder", "judged another encoder"),
        ("gone", "which is not here"),
        ("no transfer", "holds no trial.json"),
        ("two tests", "judged on store bead.*, the others on feed"),
    ],
)
def test_numbers_of_another_encoder_or_store_are_refused(change, said, run, tmp_path):
    folder, _, card = run
    file = folder / "encoders" / "s2.safetensors"
    transfers = [transfer(tmp_path / "judged", file, [result(0.4)])]
    if change == "store":
        card = card.model_copy(update={"store": "other"})
    elif change == "other encoder":
        other, _ = trained("tu-test_resnet", seed=5)
        save_encoder(tmp_path / "other.safetensors", other, card)
        transfers = [transfer(tmp_path / "wrong", tmp_path / "other.safetensors", [result(0.4)])]
    elif change == "gone":
        transfers = [transfer(tmp_path / "wrong", tmp_path / "gone.safetensors", [result(0.4)])]
    elif change == "no transfer":
        transfers = [tmp_path / "nowhere"]
    else:
        transfers.append(transfer(tmp_path / "second", file, [result(0.5)], digest="bead" * 16))
    with pytest.raises(ValueError, match=said):
        story(folder, card, file, transfers)


def test_timm_makes_the_folder_a_model_in_one_call(tmp_path, monkeypatch):
    import timm

    encoder, card = trained("tu-test_resnet", bands=("B8", "B4"))
    written(tmp_path, encoder.state_dict(), card, Story())
    model = timm.create_model(f"local-dir:{tmp_path / 'huggingface'}", pretrained=True)
    assert model.conv1[0].weight.shape[1] == 2
    assert model.conv1[0].weight.equal(encoder.state_dict()["model.conv1.0.weight"])
    config = json.loads((tmp_path / "huggingface" / "config.json").read_text())
    assert (config["cromss"]["bands"], config["cromss"]["unit"]) == (["B8", "B4"], "DN")
    assert config["model_args"] == {"in_chans": 2}  # what an older timm goes by
