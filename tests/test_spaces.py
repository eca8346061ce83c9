"""Every shipped space is sampled and every sample is valid."""

import pytest

from cromss.config import PRESETS
from cromss.objective.methods import RIVALS
from cromss.trials.arms import ARMS, arm
from cromss.trials.space import is_random, load, names, variants
from cromss.trials.trial import config_of


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("preset", PRESETS)
def test_every_sample_of_every_space_is_a_valid_run(name, preset):
    space = load(name)
    samples = variants(space.params, 3 if is_random(space.params) else 1)
    assert len(samples) > 1
    for sample in samples:
        config_of(sample | {"seed": 1}, space.base or PRESETS[preset])  # a space with a BASE brings all that is fixed


@pytest.mark.parametrize("name", names())
def test_every_space_says_its_question_its_command_and_its_cost(name):
    space = load(name)
    assert space.question.endswith("?")
    text = __import__(f"tune_spaces.{name}", fromlist=[name]).__doc__
    assert "python -m cromss.sweep" in text
    assert "Cost:" in text
    assert "Answer:" in text


def test_samples_are_seeded_so_that_a_resumed_sweep_draws_the_same():
    params = load("search").params
    assert variants(params, 4, seed=3) == variants(params, 4, seed=3)
    assert variants(params, 4, seed=3) != variants(params, 4, seed=4)


def test_the_baselines_differ_from_cromss_in_selection_alone():
    for fusion in ("midF", "lateF"):
        plain, selecting = (config_of({"arm": name}, {}).model_dump() for name in (fusion, f"CromSS-{fusion}"))
        changed = {key for key in plain if plain[key] != selecting[key]}
        assert changed == {"objective"}
        assert plain["objective"] | {"method": None} == selecting["objective"] | {"method": None}


def test_an_unknown_space_or_arm_lists_the_known_ones():
    with pytest.raises(ValueError, match="did you mean 'table1'"):
        load("tabel1")
    with pytest.raises(ValueError, match="did you mean 'CromSS-midF'"):
        arm("CromSS-mid")


def test_a_space_of_ones_own_is_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        '"""Mine?"""\nfrom cromss.trials.space import grid\ndef space():\n    return {"seed": grid(1, 2)}\n'
    )
    space = load(str(path))
    assert (space.name, space.question, len(variants(space.params, 1))) == ("mine", "Mine?", 2)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match=r"defines no function space\(\)"):
        load(str(tmp_path / "empty.py"))


def test_moco_and_dino_of_table_1_are_our_own_unless_checkpoints_are_given(monkeypatch):
    rows = load("table1").params["arm"]["grid_search"]
    assert rows == [
        "random", "MoCo", "DINO", "single-s1", "single-s2", "midF", "lateF", "CromSS-midF", "CromSS-lateF"
    ]  # fmt: skip
    own = config_of({"arm": "MoCo"}, {})
    assert (own.pretraining.kind, own.judged_modalities) == ("moco", ("s1", "s2"))
    monkeypatch.setenv("CROMSS_MOCO_S2", "moco.pth")
    config = config_of({"arm": "MoCo"}, {})
    assert config.pretraining.kind == "checkpoint"
    assert (config.judged_modalities, config.pretraining.scalings["s2"].kind) == (("s2",), "reflectance")


def test_every_rival_is_a_row_in_either_fusion_and_no_baseline_reads_more_than_it_should():
    for method in RIVALS:
        for fusion in ("midF", "lateF"):
            config = config_of({"arm": f"{method.title}-{fusion}"}, {})
            assert isinstance(config.objective.method, method)
            assert config.model == config_of({"arm": fusion}, {}).model
    for name in ("MoCo", "DINO", "MIM"):
        plain, own = (config_of({"arm": arm}, {}).model_dump() for arm in ("random", name))
        assert {key for key in plain if plain[key] != own[key]} == {"pretraining"}
    assert set(ARMS) >= {"random", "midF", "lateF"}
