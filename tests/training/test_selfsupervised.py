"""Self-supervised pretrainings, in this process: as reproducible, resumable and transferable as those on labels."""

import pytest
import torch
from tiny import TINY

from cromss.config import TransferConfig, resolve
from cromss.data.store import PatchStore
from cromss.networks.encoders import EncoderCard, build_encoder, load_card, load_encoder, save_encoder
from cromss.networks.scaling import MeanStd
from cromss.pretrain import main
from cromss.sensors import SENTINEL2
from cromss.training import pretraining, warmstart
from cromss.training.downstream import judge
from cromss.trials.cache import pretraining_key

SMALL = {
    "moco": {"kind": "moco", "hidden": 32, "dimensions": 16},
    "dino": {"kind": "dino", "hidden": 32, "bottleneck": 16, "local_crops": 1},
    "mim": {"kind": "mim"},
}
BASE = {"optim": {"epochs": 2}, "data": {"val_folds": 8}}


class Stopped(Exception):
    pass


def pretrain(worlds, out, kind, *layers, stop_after=None, downstream=False):
    """(result, journal) of a tiny run; `stop_after` epochs it is killed."""
    journal = []

    def log(step, metrics, epoch):
        journal.append((step, metrics))
        if stop_after is not None and epoch >= stop_after:
            raise Stopped

    config = resolve(TINY, BASE, {"pretraining": SMALL.get(kind, {"kind": kind})}, *layers)
    probed = PatchStore.open(worlds[1]) if downstream else None
    return pretraining.run(config, PatchStore.open(worlds[0]), out, journal=log, downstream=probed), journal


def state(out, modality="s2"):
    return load_encoder(out / "encoders" / f"{modality}.safetensors")[0]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("kind", SMALL)
def test_a_killed_run_goes_on_bit_identical_queue_and_centre_included(worlds, tmp_path, kind):
    result, whole = pretrain(worlds, tmp_path / "whole", kind)
    with pytest.raises(Stopped):
        pretrain(worlds, tmp_path / "killed", kind, stop_after=1)
    _, rest = pretrain(worlds, tmp_path / "killed", kind)
    losses = [[(step, m["train/loss"], m["val/loss"]) for step, m in journal] for journal in (whole, rest)]
    assert losses[1] == losses[0][1:]
    assert same(state(tmp_path / "whole"), state(tmp_path / "killed"))
    assert result["noise"] is None
    assert not {"panels.npz", "segmenter.safetensors"} & {path.name for path in (tmp_path / "whole").iterdir()}


@pytest.mark.parametrize("kind", SMALL)
def test_the_encoders_have_not_collapsed_are_probed_and_transfer(worlds, tmp_path, kind):
    result, journal = pretrain(worlds, tmp_path, kind, {"optim": {"epochs": 1}}, downstream=True)
    for modality in ("s1", "s2"):
        assert journal[-1][1][f"val/{modality}/spread"] > 0.02
        assert f"probe/{modality}/miou" in result["final"]
    path = tmp_path / "encoders" / "s2.safetensors"
    assert load_card(path).method == {"moco": "MoCo", "dino": "DINO", "mim": "MIM"}[kind]
    once = TransferConfig(**TINY["transfer"] | {"epochs": 1, "modes": ("finetuned",), "panels": 0})
    judged = judge(once, PatchStore.open(worlds[1]), tmp_path / "judged", modality="s2", mode="finetuned", repeat=0,
                   encoder=path, architecture="", scaling=MeanStd())  # fmt: skip
    assert 0 <= judged["miou"] <= 1


def test_the_loss_of_hidden_pixels_falls(worlds, tmp_path):
    _, journal = pretrain(worlds, tmp_path, "mim", {"optim": {"epochs": 4}})
    assert journal[-1][1]["train/loss"] < journal[0][1]["train/loss"]


def test_a_loss_that_is_not_finite_stops_by_name(worlds, tmp_path):
    with pytest.raises(FloatingPointError, match=r"step \d+: the loss is not finite.*lower optim.lr"):
        pretrain(worlds, tmp_path, "mim", {"optim": {"lr": 1e30, "epochs": 3}})


def test_pieces_of_a_batch_are_refused(worlds, tmp_path):
    with pytest.raises(ValueError, match="scaling.micro_batch=2: pretraining.kind=moco needs the company"):
        pretrain(worlds, tmp_path, "moco", {"scaling": {"micro_batch": 2}})


def test_its_address_knows_no_objective_and_no_decoder():
    config = {"pretraining": SMALL["moco"]}
    address = resolve(TINY, config).identity()
    objective = {"objective": {"method": {"kind": "plain"}, "alpha": {"end": 0.3}, "ramp_epochs": 1000}}
    decoder = {"model": {"fusion": {"kind": "late"}, "decoder_channels": [8, 8, 8, 8, 8]}}
    assert resolve(TINY, config, objective, decoder).identity() == address
    for other in ({"pretraining": {"queue": 7}}, {"seed": 1}, {"model": {"fusion": {"kind": "single"}}}):
        assert resolve(TINY, config, other).identity() != address


def test_the_short_form_of_the_verb_names_the_pretext_task(capsys):
    assert main(["--objective", "mim", "--preset", "demo", "--print-config"]) == 0
    assert "kind: mim" in capsys.readouterr().out
    assert main(["--objective", "cromss", "--set", "pretraining.kind=moco", "--print-config"]) == 0
    assert "kind: moco" in capsys.readouterr().out


# --- encoders to begin from -------------------------------------------------------------------------------------------


def kept(path, **card):
    torch.manual_seed(5)
    encoder = build_encoder(card.get("architecture", "tu-test_resnet"), 13)
    save_encoder(
        path,
        encoder,
        EncoderCard(**{"architecture": "tu-test_resnet", "modality": "s2", "bands": SENTINEL2.bands} | card),
    )
    return encoder


def test_a_run_begins_from_the_encoder_that_it_names(worlds, tmp_path):
    encoder = kept(tmp_path / "encoders" / "s2.safetensors")
    still = {"optim": {"lr": 1e-12, "epochs": 1}}
    pretrain(worlds, tmp_path / "warm", "pretrain", still, {"pretraining": {"warm_start": {"s2": str(tmp_path)}}})
    pretrain(worlds, tmp_path / "cold", "pretrain", still)
    weights = {name for name, _ in encoder.named_parameters()}
    begun, cold = state(tmp_path / "warm"), state(tmp_path / "cold")
    for name in weights:
        torch.testing.assert_close(begun[name], encoder.state_dict()[name], atol=1e-6, rtol=0)
    assert not torch.allclose(cold["model.conv1.0.weight"], begun["model.conv1.0.weight"])


def test_the_address_follows_the_content_of_the_file_not_its_name(tmp_path):
    def key(path):
        return pretraining_key(resolve(TINY, {"pretraining": {"warm_start": {"s2": str(path)}}}), ["world"])

    kept(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    first = key(tmp_path / "a.safetensors")
    assert first == key(tmp_path / "b.safetensors")
    assert first != pretraining_key(resolve(TINY), ["world"])
    kept(tmp_path / "a.safetensors", method="another")
    assert key(tmp_path / "a.safetensors") != first


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ({"architecture": "resnet18"}, "has encoder resnet18, the run tu-test_resnet"),
        ({"scaling": {"kind": "zscore"}}, "has scaling kind='zscore', the run kind='mean_2std'"),
        ({"depth": 4}, "has 4 stages, model.depth=5 needs more"),
    ],
)
def test_an_encoder_of_another_kind_is_refused(worlds, tmp_path, card, said):
    kept(tmp_path / "e.safetensors", **card)
    config = resolve(TINY, {"pretraining": {"warm_start": {"s2": str(tmp_path / "e.safetensors")}}})
    with pytest.raises(ValueError, match=said):
        pretraining.check_network(config, PatchStore.open(worlds[0]))


def test_an_encoder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"pretraining.warm_start.s2=.*: no such encoder"):
        warmstart.digests(resolve(TINY, {"pretraining": {"warm_start": {"s2": str(tmp_path)}}}))
