"""ONNX: onnxruntime computes the encoder's features, from dB and DN, for batches and images that the tracing never saw."""

import json

import pytest
import torch
from small_encoders import close, fed, pixels, trained

from cromss.exchange import onnx_file
from cromss.exchange.formats import Outgoing, format_of
from cromss.networks.encoders import Published
from cromss.networks.scaling import MeanStd, Reflectance, ZScore

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

PUBLISHED = Published(
    bands=("B4", "B3", "B2", "B8"), mean=(1e3, 2e3, 3e3, 4e3), std=(9.0, 8.0, 7.0, 600.0), clip=(0.0, 3e3)
)


def run(path, values):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(one) for one in session.run(None, {"pixels": values.numpy()})]


def features(encoder, x):
    with torch.no_grad():
        return encoder(x)[1:]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """(file, the code beside it, encoder, card) of an encoder that takes DN."""
    folder = tmp_path_factory.mktemp("onnx")
    encoder, card = trained("tu-test_convnext", depth=4)
    code = format_of("onnx").write(folder, Outgoing(encoder.state_dict(), card, licence="mit"))
    assert [path.name for path in folder.iterdir()] == ["encoder.onnx"]  # no weights beside it
    return folder / "encoder.onnx", code, encoder, card


@pytest.mark.parametrize(("batch", "side"), [(1, 64), (4, 160)])
def test_physical_values_give_the_features_of_every_stage(file, batch, side):
    path, _, encoder, card = file
    values = pixels(card, batch, side)
    values[0, 0, :9, :9] = torch.nan  # a missing value is what it was in training
    values[-1, 1, :9, :9] = -torch.inf
    expected, made = features(encoder, fed(card, values)), run(path, values)
    expected = [one for one in expected if one.shape[1]]  # a ConvNeXt has nothing at stride 2
    assert len(made) == len(expected) == 3
    for ours, theirs in zip(expected, made, strict=True):
        close(ours, theirs)


def test_the_file_says_what_it_takes_and_gives(file):
    path, code, _, _ = file
    session = onnxruntime.InferenceSession(path)
    said = session.get_modelmeta().custom_metadata_map
    assert (said["bands"], said["unit"], said["licence"], said["input_kind"]) == (
        "B4,B3,B2,B8",
        "DN",
        "mit",
        "physical",
    )
    assert "physical values in DN; scaling mean_2std is in the graph" in said["input"]
    assert json.loads(said["scaling_parameters"]) == {"kind": "mean_2std"}
    names = [one.name for one in session.get_outputs()]
    assert names == ["stride_4", "stride_8", "stride_16"]
    assert ", ".join(names) in code
    (given,) = session.get_inputs()
    assert [isinstance(size, str) for size in given.shape] == [True, False, True, True]


class OneConvolution(torch.nn.Module):
    """An encoder of one stage, quickly traced."""

    def __init__(self, bands):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(bands, 3, 2, stride=2)

    def forward(self, image):
        return [image, self.convolution(image)]


@pytest.mark.parametrize(
    ("scaling", "given"),
    [(MeanStd(), "scaled"), (Reflectance(), "physical"), (ZScore(), "physical"), (PUBLISHED, "physical")],
    ids=["scaled", "reflectance", "zscore", "published"],
)
def test_every_scaling_can_be_in_the_file_or_left_out(scaling, given, tmp_path, monkeypatch):
    _, card = trained("tu-test_resnet", scaling=scaling)
    encoder = OneConvolution(len(card.bands))
    monkeypatch.setattr(onnx_file, "rebuilt", lambda state, card: encoder)
    format_of("onnx").write(tmp_path, Outgoing({}, card, onnx_input=given))
    values = pixels(card, batch=1)
    (made,) = run(tmp_path / "encoder.onnx", values if given == "physical" else fed(card, values))
    close(features(encoder, fed(card, values))[0], made)


def test_a_file_that_computes_something_else_never_gets_its_name(tmp_path, monkeypatch):
    _, card = trained("tu-test_resnet")
    monkeypatch.setattr(onnx_file, "rebuilt", lambda state, card: OneConvolution(len(card.bands)))
    real = onnx_file._describe

    def with_other_weights(file, *rest):
        real(file, *rest)
        model = onnx.load(file)
        weight = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        values = onnx.numpy_helper.to_array(weight).copy()
        weight.CopyFrom(onnx.numpy_helper.from_array(values * 1.01, weight.name))
        onnx.save(model, file)

    monkeypatch.setattr(onnx_file, "_describe", with_other_weights)
    with pytest.raises(
        ValueError, match=r"tu-test_resnet cannot be exported: onnxruntime computes other features: stride_"
    ):
        format_of("onnx").write(tmp_path, Outgoing({}, card))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_traced_is_refused_in_a_line(tmp_path, monkeypatch):
    encoder, card = trained("tu-test_resnet")
    monkeypatch.setattr(onnx_file.Fed, "forward", lambda self, x: (x if x.sum() > 0 else -x,))
    with pytest.raises(ValueError, match="tu-test_resnet cannot be exported: ") as refused:
        format_of("onnx").write(tmp_path, Outgoing(encoder.state_dict(), card))
    assert len(str(refused.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", [one.module for one in onnx_file.NEEDED])
def test_a_missing_library_names_the_extra(missing, monkeypatch):
    import importlib

    real = importlib.import_module

    def without(name, *rest):
        if name == missing:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ValueError, match=rf"needs the package {missing}: pip install 'cromss\[export\]'"):
        format_of("onnx").require()
