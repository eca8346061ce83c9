"""What the demo claims of the synthetic Earth, on one seed: wrong labels are found, and pretraining is worth something.
Whether selection helps is measured by the demo and asserted nowhere."""

import pytest

from cromss.config import PRESETS, resolve
from cromss.data.store import PatchStore
from cromss.demo import EARTH, SPACE, detection, main
from cromss.training import pretraining
from cromss.training.downstream import judge
from cromss.trials.arms import arm
from cromss.trials.space import variants
from cromss.trials.trial import config_of
from cromss.trials.worlds import synthetic_stores


@pytest.mark.timeout(600)
def test_confidence_finds_wrong_labels_and_pretrained_encoders_beat_random_ones(tmp_path):
    data, downstream = map(PatchStore.open, synthetic_stores(tmp_path / "earth", EARTH))
    config = resolve(PRESETS["demo"], arm("midF").overlay)
    noise = pretraining.run(config, data, tmp_path / "run")["noise"]
    assert 0.18 < noise["rate"] < 0.27
    for modality in ("s1", "s2"):
        assert noise[modality]["auroc_F_enhanced"] > 0.75
        scored = {}
        for name, encoder in (
            ("pretrained", tmp_path / "run" / "encoders" / f"{modality}.safetensors"),
            ("random", None),
        ):
            scored[name] = judge(
                config.transfer, downstream, tmp_path / name / modality, modality=modality, mode="frozen", repeat=0,
                encoder=encoder, architecture=config.model.encoder, scaling=config.model.scaling,
            )["miou"]  # fmt: skip
        assert scored["pretrained"] > scored["random"] + 0.1


def test_every_arm_of_the_demo_is_a_valid_run_and_the_table_asked_for_is_complete():
    labels = {arm(sample["arm"]).label for sample in variants(SPACE.params, 1)}
    assert labels >= {"random", "single-modal", "midF", "CromSS-midF", "CromSS-lateF", "oracle-midF"}
    for sample in variants(SPACE.params, 1):
        assert config_of(sample, PRESETS["demo"]).transfer.modes == ("frozen",)


def test_detection_is_told_with_and_without_enhancement():
    noise = {"rate": 0.25, "s1": {"auroc_F": 0.7, "auroc_F_enhanced": 0.8, "auroc_W": 0.75}}
    told = detection(
        [{"arm": "midF", "noise": noise}, {"arm": "midF", "noise": noise}, {"arm": "random", "noise": None}]
    )
    assert "0.700        0.800      0.750" in told
    assert "25.0 % of the labels are wrong" in told


def test_print_config_shows_the_demo_and_starts_nothing(capsys):
    assert main(["--print-config"]) == 0
    assert "encoder: tu-test_resnet" in capsys.readouterr().out
