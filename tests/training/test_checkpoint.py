"""A checkpoint is valid or it does not exist."""

import json

import pytest
import safetensors
import torch

from cromss.training import checkpoint


def put(directory, step, value=0.0, keep=2):
    tensors = {"model": {"w": torch.full((3,), value)}, "optimizer": {"0.step": torch.tensor(float(step))}}
    return checkpoint.save(directory, step, tensors, {"value": value}, keep=keep)


def test_what_was_saved_comes_back(tmp_path):
    put(tmp_path, 7, 1.5)
    found, skipped = checkpoint.newest_valid(tmp_path)
    assert (found.step, found.state, skipped) == (7, {"value": 1.5}, [])
    assert torch.equal(found.tensors["model"]["w"], torch.full((3,), 1.5))


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 10):
        put(tmp_path, step)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000000003", "step-000000010"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "no manifest", "missing", "half a manifest"])
def test_a_torn_newest_checkpoint_is_skipped_by_name(tmp_path, damage):
    put(tmp_path, 1, 1.0)
    newest = put(tmp_path, 2, 2.0)
    weights = newest / "model.safetensors"
    content = weights.read_bytes()
    match damage:
        case "flip":
            weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "truncate":
            weights.write_bytes(content[:-4])
        case "no manifest":
            (newest / "manifest.json").unlink()
        case "missing":
            weights.unlink()
        case "half a manifest":
            (newest / "manifest.json").write_text(json.dumps({"step": 2, "sha256": {}})[:-5])
    found, skipped = checkpoint.newest_valid(tmp_path)
    assert (found.step, found.state["value"]) == (1, 1.0)
    assert len(skipped) == 1
    assert "step-000000002" in skipped[0]


def test_nothing_is_left_of_a_save_that_failed(tmp_path, monkeypatch):
    put(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "sha256", lambda path: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):
        put(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_a_full_disk_is_noticed_before_a_byte_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(OSError, match="needs 0 MiB, 0 MiB are free"):
        put(tmp_path, 1)
    assert not list(tmp_path.iterdir())


def test_no_directory_is_no_checkpoint(tmp_path):
    assert checkpoint.newest_valid(tmp_path / "absent") == (None, [])


def test_adam_goes_on_as_if_nothing_had_happened():
    def net_and_adam():
        torch.manual_seed(0)
        net = torch.nn.Linear(4, 2)
        return net, torch.optim.Adam(net.parameters(), 0.1)

    def step(net, adam, seed):
        adam.zero_grad()
        net(torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        adam.step()

    whole, whole_adam = net_and_adam()
    for seed in range(4):
        step(whole, whole_adam, seed)
    first, first_adam = net_and_adam()
    for seed in range(2):
        step(first, first_adam, seed)
    second, second_adam = net_and_adam()
    second.load_state_dict(first.state_dict())
    checkpoint.restore_optimizer(second_adam, checkpoint.optimizer_tensors(first_adam))
    for seed in range(2, 4):
        step(second, second_adam, seed)
    assert torch.equal(whole.weight, second.weight)


def test_a_disk_that_fills_while_the_tensors_are_written_is_an_os_error_and_leaves_nothing(tmp_path, monkeypatch):
    put(tmp_path, 1)

    def full(*given):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint.safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=r"model\.safetensors: I/O error: No space left on device"):
        put(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
