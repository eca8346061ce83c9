"""The verb, on a run that was trained here: what it prints, what it writes, what it refuses."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_encoders import close, fed, pixels, trained
from tiny import TINY

from cromss.config import resolve
from cromss.data.store import PatchStore
from cromss.exchange import formats
from cromss.exchange.libraries import rebuilt
from cromss.export import main as export
from cromss.journal import write_json
from cromss.networks.encoders import load_card, load_encoder, save_encoder
from cromss.provenance import collect
from cromss.training import pretraining
from cromss.transfer import judge_here

ALL = (
    "safetensors",
    "timm",
    "smp",
    "huggingface",
)  # what fits the tiny network and needs no library that may be missing


@pytest.fixture(scope="module")
def run(worlds, tmp_path_factory):
    """A sweep's trial: pretrained and judged, its record beside it."""
    out = tmp_path_factory.mktemp("runs") / "trials" / "abc"
    config, store, downstream = resolve(TINY), PatchStore.open(worlds[0]), PatchStore.open(worlds[1])
    result = pretraining.run(config, store, out, downstream=downstream)
    judged = judge_here(config, out, worlds[1], key="")
    told = collect(seed=0, device="cpu", data=str(worlds[0]), store_digest=store.digest, downstream=str(worlds[1]),
                   downstream_digest=downstream.digest)  # fmt: skip
    record = {"key": "abc", "arm": "CromSS-midF", "seed": 0, "status": "done", "config": config.model_dump(mode="json"),
              "final": result["final"], "noise": result["noise"], "seconds": result["seconds"], "pretraining": result,
              "provenance": told, "downstream": judged}  # fmt: skip
    write_json(out / "trial.json", record)
    return out


@pytest.fixture
def encoder_file(tmp_path):
    """(file, encoder, card) without a run."""
    encoder, card = trained("tu-test_resnet")
    save_encoder(tmp_path / "s2.safetensors", encoder, card)
    return tmp_path / "s2.safetensors", encoder, card


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_run_becomes_a_folder_for_each_modality_with_the_runs_own_numbers(run, tmp_path, capsys):
    assert export([str(run), "--to", *ALL, "--out", str(tmp_path), "--licence", "cc-by-4.0"]) == 0
    one = ["README.md", "encoder.safetensors", "huggingface/README.md", "huggingface/config.json",
           "huggingface/model.safetensors", "smp.safetensors", "timm.safetensors"]  # fmt: skip
    assert files(tmp_path) == [f"{modality}/{name}" for modality in ("s1", "s2") for name in one]
    printed = capsys.readouterr().out
    record = json.loads((run / "trial.json").read_text())
    for modality in ("s1", "s2"):
        assert f"{tmp_path}/{modality}/README.md  how to load them" in printed
        state, card = load_encoder(tmp_path / modality / "encoder.safetensors")
        ours, own = load_encoder(run / "encoders" / f"{modality}.safetensors")
        assert card == own
        assert all(torch.equal(state[name], ours[name]) for name in ours)
        text = (tmp_path / modality / "huggingface" / "README.md").read_text()
        (judged,) = [one for one in record["downstream"] if one["modality"] == modality]
        pixels = sum(map(sum, judged["confusion"]))
        assert (
            f"| {100 * judged['miou']:.2f} | {100 * judged['oa']:.2f} | {100 * judged['aa']:.2f} | 1 | {pixels:,} |"
            in text
        )
        assert f"| `probe/{modality}/miou` | {record['final'][f'probe/{modality}/miou']:.4g} |" in text
        assert f"{record['noise']['rate']:.1%} of the labels were wrong" in text
        assert "| patches in its training split | 112 of 28 places |" in text
        assert "| label scheme (noisy labels) | dynamic-world |" in text


def test_a_file_in_a_run_brings_the_runs_numbers_and_a_copy_elsewhere_does_not(run, tmp_path):
    shutil.copy(run / "encoders" / "s2.safetensors", tmp_path / "s2.safetensors")
    metrics = []
    for file, out in ((run / "encoders" / "s2.safetensors", "in"), (tmp_path / "s2.safetensors", "out")):
        assert export([str(file), "--to", "safetensors", "--out", str(tmp_path / out)]) == 0
        with safe_open(tmp_path / out / "encoder.safetensors", framework="pt") as opened:
            metrics.append(json.loads(opened.metadata()["metrics"]))
    final = json.loads((run / "trial.json").read_text())["final"]
    assert metrics[0]["probe/s2/miou"] == final["probe/s2/miou"]
    assert metrics[1] == {}


def test_without_formats_named_all_that_fit_are_written_and_the_others_told(run, tmp_path, capsys, monkeypatch):
    rows = {name: formats.FORMATS[name] for name in ("safetensors", "torchvision", "torchgeo", "smp")}
    monkeypatch.setattr(formats, "FORMATS", rows)
    assert export([str(run), "--modality", "s1", "--out", str(tmp_path / "out")]) == 0
    assert files(tmp_path / "out") == ["README.md", "encoder.safetensors", "smp.safetensors"]
    printed = capsys.readouterr().out
    assert "left out: s1 torchvision: torchvision has no ResNet called test_resnet" in printed
    assert "left out: s1 torchgeo: torchgeo has no model test_resnet" in printed


def test_one_file_is_written_with_the_code_that_loads_it(encoder_file, tmp_path, capsys, monkeypatch):
    path, encoder, card = encoder_file
    assert export([str(path), "--to", "smp", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.split("how to load them:\n")[1]
    monkeypatch.chdir(tmp_path / "out")
    names = {"x": fed(card, pixels(card))}
    with torch.no_grad():
        exec("\n".join(line[4:] for line in printed.splitlines()), names)
        close(encoder(names["x"])[-1], names["features"][-1])
    assert (tmp_path / "out" / "smp.safetensors").stat().st_mode & 0o777 == (
        (tmp_path / "out" / "README.md").stat().st_mode & 0o777
    )


def test_a_checkpoint_of_other_people_goes_out_again_with_its_scaling(tmp_path, capsys):
    encoder, card = trained("resnet18", "s1", ("VV", "VH"))
    torch.save(
        {"state_dict": {f"module.encoder_q.{k}": v for k, v in encoder.state_dict().items()}}, tmp_path / "moco.pth"
    )
    assert (
        export([str(tmp_path / "moco.pth"), "--from", "auto", "--to", "safetensors", "--out", str(tmp_path / "out")])
        == 0
    )
    assert "moco.pth: s1 resnet18, layout ssl4eo-moco" in capsys.readouterr().out
    state, back = load_encoder(tmp_path / "out" / "encoder.safetensors")
    assert (back.bands, back.scaling.kind) == (("VV", "VH"), "mean_2std")
    x = fed(card, pixels(card))
    with torch.no_grad():
        close(encoder(x)[-1], rebuilt(state, back)(x)[-1])


def test_an_adaptation_is_told_and_kept_in_the_card(encoder_file, tmp_path, capsys):
    path, _, _ = encoder_file
    asked = ["--adapt-bands", "zero", "--bands", "B4,B3,B2,B8,B11"]
    assert export([str(path), "--to", "safetensors", "--out", str(tmp_path / "out"), *asked]) == 0
    assert "bands adapted, zero: B11 added with weight 0; trained on B4, B3, B2, B8" in capsys.readouterr().out
    card = load_card(tmp_path / "out" / "encoder.safetensors")
    assert (card.bands[-1], card.extra["bands_trained_on"]) == ("B11", "B4, B3, B2, B8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["FILE", "--bands", "B2,B3,B4,B8"],
            "trained on B4, B3, B2, B8, --bands says B2, B3, B4, B8; for other bands say how",
        ),
        (["FILE", "--bands", "B4,B99"], "Sentinel-2 L1C has no band 'B99'"),
        (["FILE", "--adapt-bands", "zero"], "--adapt-bands zero: to which bands? name them with --bands"),
        (["FILE", "--adapt-bands", "zeros", "--bands", "9"], "--adapt-bands zeros: unknown; did you mean 'zero'?"),
        (["FILE", "--to", "torchvison"], "--to torchvison: unknown format; did you mean 'torchvision'?"),
        (["FILE", "--to", "torchvision"], "--to torchvision: torchvision has no ResNet called test_resnet"),
        (["FILE", "--modality", "s1"], "is an encoder of s2, --modality says s1"),
        (["FILE", "--scaling", "zscore"], "was trained with scaling mean_2std, --scaling says zscore"),
        (["FILE", "--scaling", "z-score"], "--scaling z-score: unknown; did you mean 'zscore'?"),
        (["FILE", "--unit", "DN"], "--unit: is for checkpoints of other people; say whose with --from"),
        (["FILE", "--transfer", "/nowhere"], "--transfer /nowhere: holds no trial.json"),
        (["FILE", "--from", "ssl4eo-mocco"], "--from ssl4eo-mocco: unknown layout; did you mean 'ssl4eo-moco'?"),
        (["FILE", "--from", "auto", "--transfer", "x"], "--transfer: scores are of encoders of ours"),
        (["/nowhere/weights.pth"], "/nowhere/weights.pth: no such run, trial or file"),
        (["PTH"], "is no encoder file of ours; whose is it? --from LAYOUT, or --from auto"),
        (["PTH", "--from", "auto"], "cannot be read as a checkpoint"),
        (["FOREIGN"], "has no encoder card"),
        (["RUN", "--modality", "s3"], "has s1, s2"),
        (["TRIALS"], "no encoders/*.safetensors in there; its trials have:"),
        ([], "SOURCE and --out DIR are needed"),
    ],
)
def test_what_cannot_be_is_one_clear_line_and_nothing_is_left(run, encoder_file, tmp_path, capsys, arguments, said):
    (tmp_path / "odd.pth").write_bytes(b"")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    places = {"FILE": encoder_file[0], "PTH": tmp_path / "odd.pth", "FOREIGN": tmp_path / "foreign.safetensors",
              "RUN": run, "TRIALS": run.parents[1]}  # fmt: skip
    words = [str(places.get(word, word)) for word in arguments]
    to = [] if "--to" in words else ["--to", "safetensors"]
    assert export([*words, *to, "--out", str(tmp_path / "out" / "deep")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out" / "deep").exists()


def test_what_is_there_is_kept_unless_overwrite_says_so(encoder_file, tmp_path, capsys):
    path, _, _ = encoder_file
    asked = [str(path), "--to", "smp", "--out", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "smp.safetensors").write_text("mine")
    (tmp_path / "out" / "notes.txt").write_text("mine too")
    assert export(asked) == 2
    assert "smp.safetensors: is there already; choose another --out, or --overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "smp.safetensors").read_text() == "mine"
    assert export([*asked, "--overwrite"]) == 0
    assert len(load_file(tmp_path / "out" / "smp.safetensors")) > 20
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine too"


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("broken")])
def test_whatever_ends_it_in_the_middle_leaves_nothing_under_a_final_name(
    stop, encoder_file, tmp_path, capsys, monkeypatch
):
    path, _, _ = encoder_file
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")

    def stopped(self, folder, encoder):
        (folder / self.target).write_bytes(b"half")
        raise stop

    monkeypatch.setattr(formats.Smp, "write", stopped)
    status = export([str(path), "--to", "safetensors", "smp", "--out", str(out)])
    assert status == (130 if isinstance(stop, KeyboardInterrupt) else 2)
    assert files(out) == ["notes.txt"]
    assert list(out.iterdir()) == [out / "notes.txt"]
    if isinstance(stop, OSError):
        assert (
            f"{out}: cannot be written (No space left on device); nothing half-written was left"
            in capsys.readouterr().err
        )


def test_a_folder_that_cannot_be_written_is_a_line(encoder_file, tmp_path, capsys):
    path, _, _ = encoder_file
    (tmp_path / "file").write_text("")
    assert export([str(path), "--to", "smp", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot be written (Not a directory)" in capsys.readouterr().err


def test_a_run_whose_numbers_are_of_another_store_is_refused(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((run / "trial.json").read_text())
    record["provenance"]["store_digest"] = "0" * 64
    write_json(tmp_path / "run" / "trial.json", record)
    assert export([str(tmp_path / "run"), "--to", "smp", "--out", str(tmp_path / "out")]) == 2
    assert "was trained on store 000000000000, the encoder" in capsys.readouterr().err


def test_the_tables_are_listed_without_a_source(capsys):
    from cromss.exchange.layouts import LAYOUTS

    assert export(["--formats"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in (*formats.FORMATS, *LAYOUTS))


def test_help_needs_no_network_library_and_says_every_option(capsys):
    import subprocess
    import sys

    code = (
        "import sys; from cromss.export import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'timm', 'onnx', 'torchgeo', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--adapt-bands HOW" in done.stdout
