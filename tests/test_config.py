"""The configuration's defaults are the paper; presets and refusals."""

import json

import pytest

from cromss.config import PRESETS, resolve
from cromss.pretrain import main as pretrain
from cromss.settings import leaves


def test_defaults_are_the_paper():
    config = resolve()
    assert (config.optim.lr, config.optim.epochs, config.ramp_epochs) == (5e-4, 100, 80)
    assert (config.optim.schedule.kind, config.optim.schedule.factor, config.optim.schedule.patience) == (
        "plateau",
        0.5,
        30,
    )
    assert (config.objective.alpha.end, config.objective.gamma.end, config.objective.consistency.kind) == (
        0.5,
        1.0,
        "kl",
    )
    assert (config.objective.per_class, config.objective.scope, config.objective.smoothing.kind) == (
        False,
        "batch",
        "none",
    )
    assert (config.model.encoder, config.model.fusion.kind, config.model.fusion.decoder_norm) == (
        "resnet50",
        "middle",
        "shared",
    )
    assert (config.transfer.lr, config.transfer.epochs, config.transfer.batch_size) == (5e-5, 50, 32)
    assert (config.transfer.head.kind, config.transfer.head.head_depth, config.transfer.repeats) == ("pspnet", 3, 3)


def test_the_authors_code_differs_where_the_reference_says():
    paper, code = leaves(resolve().model_dump()), leaves(resolve(PRESETS["authors-code"]).model_dump())
    changed = {key for key in paper.keys() | code.keys() if paper.get(key) != code.get(key)}
    assert changed == {
        "optim.lr", "optim.weight_decay", "optim.epochs", "objective.per_class", "objective.consistency.kind",
        "objective.ramp_epochs", "objective.smoothing.kind", "objective.smoothing.a", "objective.smoothing.b",
        "objective.smoothing.sigma", "objective.smoothing.truncate", "transfer.lr", "transfer.schedule.kind",
        "transfer.schedule.end", "transfer.schedule.epochs",
    }  # fmt: skip
    assert (code["objective.smoothing.a"], code["objective.smoothing.b"]) == (0.15, 0.05)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_survives_json(name):
    config = resolve(PRESETS[name])
    assert resolve(json.loads(config.model_dump_json())) == config


def test_a_run_too_short_for_its_ramp_is_refused():
    with pytest.raises(ValueError, match=r"ramp_epochs=80: longer than the run \(optim.epochs=10\)"):
        resolve({"optim": {"epochs": 10}, "objective": {"ramp_epochs": 80}})
    assert resolve({"optim": {"epochs": 10}}).ramp_epochs == 8


def test_what_has_no_effect_is_no_part_of_the_identity():
    none = {"objective": {"method": {"kind": "plain"}}}
    assert resolve(none).identity() == resolve(none, {"objective": {"alpha": {"end": 0.1}}}).identity()
    assert resolve().identity() != resolve({"objective": {"alpha": {"end": 0.1}}}).identity()
    elsewhere = {"scaling": {"num_workers": 8}, "data": {"reader": {"kind": "direct"}}, "transfer": {"lr": 1.0}}
    assert resolve().identity() == resolve(elsewhere).identity()
    assert resolve().identity() != resolve({"seed": 1}).identity()


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("objective.alfa.end=0.3", "objective.alfa: unknown key; did you mean 'alpha'?"),
        ("objective.alpha.end=1.5", "objective.alpha.end=1.5: must lie in [0, 1]; the default is 0.5"),
        ("model.fusion.kind=midle", "model.fusion.kind=midle: unknown; did you mean 'middle'?"),
        ("model.encoder=resnet51", "resnet50"),
        ("optim.epochs=many", "optim.epochs='many': should be a valid integer"),
        ("optim.batch_size=100", "must be a multiple of data.lanes=8"),
        ("objective.scope=bach", "objective.scope=bach: unknown; did you mean 'batch'?"),
    ],
)
def test_a_mistake_costs_one_line_and_exit_2(argument, said, capsys, tmp_path):
    assert pretrain(["--data", "x", "--out", str(tmp_path / "out"), "--set", argument]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_print_config_shows_the_resolved_whole_and_starts_nothing(capsys):
    assert pretrain(["--print-config", "--preset", "authors-code", "--set", "objective.alpha.end=0.3"]) == 0
    shown = capsys.readouterr().out
    assert "lr: 0.005" in shown
    assert "end: 0.3" in shown


def test_a_yaml_file_may_name_its_preset_and_set_wins_over_it(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("preset: authors-code\noptim: {epochs: 150}\n")
    assert pretrain(["--config", str(tmp_path / "c.yaml"), "--set", "optim.lr=0.25", "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert "epochs: 150" in shown
    assert "lr: 0.25" in shown
    assert "per_class: true" in shown


def test_an_unknown_preset_lists_the_known_ones(capsys):
    assert pretrain(["--preset", "papr", "--print-config"]) == 2
    assert "did you mean 'paper'? valid: paper, authors-code, demo" in capsys.readouterr().err
