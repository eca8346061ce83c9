"""`cromss estimate`: the verb, its table, its refusals."""

import json

import pytest
import yaml
from tiny import TINY

from cromss import estimate
from cromss.costs.table import amount, clock


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


def said(capsys, *words):
    status = estimate.main(list(map(str, words)))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def rows_are_printed(found, out):
    """Every row of the JSON stands in the table with its numbers."""
    lines = out.splitlines()
    for row in found["rows"]:
        [line] = [line for line in lines if line.startswith(row["name"] + " ") and row["how"] in line and
                  clock(row["seconds"]) in line and clock(row["each"]) in line]  # fmt: skip
        assert amount(row["device_hours"]) in line
        assert row["bottleneck"] in line
    for fact in found["facts"]:
        assert any(line.startswith(fact["name"] + " ") and f"{amount(fact['value'])} {fact['unit']}".rstrip() in line
                   and f"({fact['how']})" in line for line in lines)  # fmt: skip


def test_a_run_is_measured_and_its_table_is_its_json(worlds, tiny, tmp_path, capsys):
    data, downstream = worlds
    status, out, _ = said(capsys, "--config", tiny, "--data", data, "--downstream", downstream, "--gpu", "cpu",
                          "--seconds", 4, "--price", 2, "--json", tmp_path / "cost.json")  # fmt: skip
    assert status == 0
    found = json.loads((tmp_path / "cost.json").read_text())["run"]
    rows_are_printed(found, out)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["start: processes, Ray, MLflow", "training step", "validation", "probe", "checkpoint",
                          "encoders and pictures", "epoch", "pretraining", "one run: s1 frozen", "one run: s2 frozen",
                          "downstream runs", "run"]  # fmt: skip
    measured = {name for name, row in rows.items() if row["how"] == "measured"}
    assert measured == set(rows) - {"start: processes, Ray, MLflow", "run"}
    assert rows["training step"]["number"] == 3 * 27 // 8
    assert rows["pretraining"]["seconds"] > rows["training step"]["seconds"] > 0
    assert found["money"] == pytest.approx(2 * found["device_hours"])
    facts = {fact["name"]: fact for fact in found["facts"]}
    assert facts["speed"]["value"] == pytest.approx(8 / rows["training step"]["each"], rel=1e-6)
    assert facts["arithmetic of a step"]["how"] == "computed"
    assert found["bottleneck"] in ("compute", "memory", "decode", "storage", "launches")


def test_a_sweep_is_computed_for_gpus_that_are_elsewhere(worlds, tiny, tmp_path, capsys):
    data, downstream = worlds
    status, out, _ = said(capsys, "--config", tiny, "--data", data, "--downstream", downstream, "--space", "cromss",
                          "--gpu", "h200", "--gpus", 4, "--seconds", 0, "--json", tmp_path / "cost.json")  # fmt: skip
    assert status == 0
    found = json.loads((tmp_path / "cost.json").read_text())
    for one in found.values():
        rows_are_printed(one, out)
        assert {row["how"] for row in one["rows"]} == {"computed"}
        assert one["unit"] == "GPU-hours"
        assert one["money"] is None
    assert "sweep of 8 trials, 4 at a time on 1 x NVIDIA H200" in out  # 8 configurations, one seed, a GPU each
    published = [fact for fact in found["run"]["facts"] if "55 pairs/s" in fact["name"]]
    assert published[0]["value"] == pytest.approx(10 * 8 / 55 / 3600)
    assert found["sweep"]["device_hours"] > found["sweep"]["seconds"] / 3600


def test_without_a_downstream_store_there_is_no_judgement(worlds, tiny, capsys):
    status, out, _ = said(capsys, "--config", tiny, "--data", worlds[0], "--gpu", "a100-40", "--seconds", 0)
    assert status == 0
    assert "without --downstream there is no probe, and no downstream run" in out
    assert "downstream runs" not in out
    assert "probe" not in out.split("without")[0]


def test_a_step_that_fits_no_memory_is_named(worlds, capsys):
    status, out, _ = said(capsys, "--data", worlds[0], "--gpu", "a100-40", "--seconds", 0, "--set", "data.augment.crop=32",
                          "--set", "optim.batch_size=24", "--set", "scaling.num_workers=1")  # fmt: skip
    assert status == 0
    assert "warning" not in out
    from cromss.costs.facts import warnings
    from cromss.costs.hardware import Hardware
    from cromss.costs.work import Operator, Work

    class Small:
        counted = Work((Operator(1.0, 1.0),), parameters=1_000_000_000, saved=4e9)
        on = Hardware("toy", "toy", 1.0, 1.0, memory=16e9)

    assert warnings(Small())[0].startswith("warning: a worker's step needs about 20 GB, toy has 16 GB")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "--data STORE is needed"),
        (("--data", "nowhere"), "nowhere"),
        (("--data", "STORE", "--gpu", "v100"), "--gpu v100: unknown"),
        (("--data", "STORE", "--gpu", "h20"), "did you mean 'h200'?"),
        (("--data", "STORE", "--price", "-1"), "--price=-1: must be what a device-hour costs, 0 or more"),
        (("--data", "STORE", "--seconds", "-5"), "--seconds=-5: must be 0 or more"),
        (("--data", "STORE", "--space", "cromsss"), "did you mean 'cromss'?"),
        (("--data", "STORE", "--gpu", "cpu", "--gpus", "2"), "--gpus=2: there are none with --gpu cpu"),
        (("--data", "STORE", "--gpus", "0"), "--gpus=0: must be 1 or more"),
        (("--data", "STORE", "--gpu", "h200", "--gpus", "2", "--workers", "4"), "--gpus=2: too few for 4 workers"),
        (("--data", "STORE", "--workers", "3"), "3 workers cannot share 4 lanes equally"),
        (("--data", "STORE", "--space", "cromss", "--samples", "2"), "--samples 2: space cromss is a plain grid"),
        (("--data", "STORE", "--json", "no/such/folder/x.json"), "there is no folder no/such/folder"),
        (("--data", "STORE", "--set", "pretraining.kind=random"), "only judged, and --downstream STORE is missing"),
        (("--data", "STORE", "--set", "optim.batch_size=64"), "an epoch of"),
    ],
)
def test_mistakes_are_one_clear_line(words, line, worlds, tiny, capsys):
    words = [worlds[0] if word == "STORE" else word for word in words]
    status, out, error = said(capsys, "--config", tiny, "--seconds", 0, *words)
    assert status == 2
    assert line in error
    assert len(error.splitlines()) == 1
    assert out == ""


def test_the_configuration_is_shown_and_nothing_else_done(tiny, capsys):
    status, out, _ = said(capsys, "--config", tiny, "--print-config", "--workers", 2)
    assert status == 0
    assert yaml.safe_load(out)["scaling"]["num_workers"] == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.01234, "0.012 s"), (59.94, "59.9 s"), (187, "3:07 min"), (7204, "2:00 h"), (400 * 3600, "16.7 days")],
)
def test_times_are_read_at_a_glance(seconds, text):
    assert clock(seconds) == text


def test_amounts_keep_three_figures():
    assert [amount(value) for value in (0, 0.001234, 1.5, 99.96, 1234567.8)] == [
        "0",
        "0.00123",
        "1.5",
        "100",
        "1,234,568",
    ]
