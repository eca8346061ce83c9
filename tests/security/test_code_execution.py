"""Files that would run code where somebody trusts them: weights, configurations. Each shows first that it would."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from cromss.config import resolve
from cromss.files import Folder
from cromss.networks.encoders import import_encoder, load_card, load_encoder
from cromss.pretrain import main as pretrain
from cromss.settings import assignments, read_yaml
from cromss.training import checkpoint, segmenter_file


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def owned(tmp_path):
    """What a trap makes; nothing of it may be there at the end."""
    path = tmp_path / "owned"
    yield path
    assert not path.exists()


def trapped(path: Path, owned: Path, form: str) -> Path:
    """A file that runs code when it is unpickled, in a form that torch or people write."""
    content = {"state_dict": {"conv1.weight": torch.zeros(3)}, "more": Trap(owned)}
    if form == "torch":
        torch.save(content, path)
    elif form == "torch, old":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif form == "whole network":
        torch.save(Trap(owned), path)
    elif form == "zip with a pickle":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Trap(owned), protocol=2))
            archive.writestr("archive/version", "3\n")
    else:
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    return path


FORMS = ("torch", "torch, old", "whole network", "zip with a pickle", "pickle 2", "pickle 4")


@pytest.mark.parametrize("form", FORMS)
def test_the_traps_work(tmp_path, form):
    path = trapped(tmp_path / "trap.pth", tmp_path / "sprung", form)
    if form.startswith("pickle"):
        pickle.loads(path.read_bytes())  # noqa: S301
    else:
        torch.load(path, weights_only=False)
    assert (tmp_path / "sprung").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt", ""])
@pytest.mark.parametrize("form", FORMS)
def test_no_reader_of_weights_runs_what_is_in_them(tmp_path, owned, form, suffix):
    path = trapped(tmp_path / f"trap{suffix}", owned, form)
    with pytest.raises(ValueError, match="trap"):
        import_encoder(path, modality="s2", bands="all", architecture="resnet18")
    for read in (load_card, load_encoder, segmenter_file.load_card, segmenter_file.load):
        with pytest.raises(ValueError, match="trap"):
            read(path)


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_whose_tensors_are_a_pickle_is_skipped_by_name(tmp_path, owned, form):
    """With a manifest that vouches for it: whoever can write one can compute a sha256."""
    import hashlib
    import json

    step = tmp_path / "checkpoints" / "step-000000007"
    step.mkdir(parents=True)
    trapped(step / "network.safetensors", owned, form)
    (step / "state.json").write_text("{}")
    digests = {name: hashlib.sha256((step / name).read_bytes()).hexdigest() for name in os.listdir(step)}
    (step / "manifest.json").write_text(json.dumps({"step": 7, "sha256": digests}))
    found, skipped = checkpoint.newest_valid(Folder.of(step.parent))
    assert found is None
    assert "step-000000007: skipped" in skipped[0]


TAGS = (
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.PosixPath [{owned}]]",
    "!!python/object/apply:os.system ['touch {owned}']",
    "!!python/object/new:os.system ['touch {owned}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object:cromss.config.RunConfig {{}}",
    "!!python/tuple [1, 2]",
    "!os.system x",
)


@pytest.mark.parametrize("tag", TAGS)
def test_a_configuration_makes_no_objects(tmp_path, owned, capsys, tag):
    text = tag.format(owned=owned)
    (file := tmp_path / "a.yaml").write_text(f"optim:\n  lr: {text}\n")
    for read in (lambda: read_yaml(file), lambda: assignments([f"optim.lr={text}"])):
        with pytest.raises(ValueError, match="could not determine a constructor"):
            read()
    assert pretrain(["--config", str(file), "--print-config"]) == 2
    assert pretrain(["--set", f"optim.lr={text}", "--print-config"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_one_of_the_tags_works_where_it_is_trusted(tmp_path):
    yaml.unsafe_load(TAGS[1].format(owned=tmp_path / "sprung"))
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("preset", ["../../x", "/etc/passwd", "__import__('os')", "paper\0"])
def test_a_preset_is_one_of_ours(preset):
    with pytest.raises(ValueError):
        resolve({"preset": preset})
