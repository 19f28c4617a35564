"""ExecuTorch takes one model of every family, gives its answers, and leaves little to slow kernels."""

import sys
from importlib.util import find_spec

import pytest
import torch
from test_export_contract import trained

from vitrail.config import Preprocess
from vitrail.errors import BundleError, ConfigError, MissingExtraError
from vitrail.models import MODELS
from vitrail.shipping.executorch import export_executorch, open_program

needs_executorch = pytest.mark.skipif(
    not find_spec("executorch"), reason="needs executorch, which is not here: pip install '.[executorch]'"
)

LEFT = {
    "vit_micro_patch32": 55,  # of them 25 broadcasts that change nothing, 17 layer norms
    "lucarne_xs": 4,
    "mobilevit_xxs": 217,  # one head after the other: 144 such broadcasts, 48 splits, 21 layer norms
    "mobilevitv2_050": 76,  # 43 means, of its norms
    "mocovit_050": 17,  # 15 constants
    "ghostnet_050": 17,
    "mobilenetv3_small_050": 21,
    "repvit_m0_9": 4,
    "resnet18": 4,
}
"""Operators that XNNPACK does not take, in executorch 1.4.1; three of each order the bytes of the picture."""


OPTIONS = {"vit_micro_patch32": {"local": True, "fusion": True}}


def test_every_family_is_here():
    assert {MODELS[name].build.func.__module__ for name in LEFT} == {e.build.func.__module__ for e in MODELS.values()}


@needs_executorch
@pytest.mark.parametrize("name", LEFT)
def test_it_answers_alike_and_leaves_no_more_to_slow_kernels_than_was_seen(name, tmp_path):
    """Seen: at most 7e-6 of the largest logit. Channels last, as trained models are."""
    model, path = trained(name, **OPTIONS.get(name, {})).to(memory_format=torch.channels_last), tmp_path / "model.pte"
    preprocess = Preprocess(image_size=model.image_size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    left = export_executorch(model, path, preprocess=preprocess)
    assert left.total() <= LEFT[name], left
    assert not any("convolution" in operator or "mm" in operator or "linear" in operator for operator in left)

    pixels = torch.randint(0, 256, (2, *model.image_size, 3), dtype=torch.uint8)
    logits, probabilities = (
        torch.from_numpy(answer) for answer in open_program(path, preprocess).answers(pixels.numpy())
    )
    with torch.inference_mode():
        expected = model(pixels.permute(0, 3, 1, 2) / 255)
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    torch.testing.assert_close(probabilities, expected.softmax(dim=-1), rtol=0, atol=1e-4)


LINEAR = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(80, 3))


def test_without_executorch_its_extra_is_named_and_nothing_written(monkeypatch, tmp_path):
    for module in ("executorch", "executorch.exir", "executorch.backends.xnnpack.partition.xnnpack_partitioner"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"vitrail\[executorch\]"):
        export_executorch(LINEAR, tmp_path / "model.pte", preprocess=Preprocess(image_size=(4, 4)))
    assert list(tmp_path.iterdir()) == []


FIVE = {"image_size": (4, 4), "mean": (0.5,) * 5, "std": (0.5,) * 5, "channels": 5}


def test_pixels_of_16_bits_are_refused_because_executorch_has_no_operators_for_them(tmp_path):
    with pytest.raises(ConfigError, match="no operators for 16-bit pixels"):
        export_executorch(LINEAR, tmp_path / "m.pte", preprocess=Preprocess(**FIVE, pixel_type="uint16"))
    assert list(tmp_path.iterdir()) == []


@needs_executorch
def test_floats_of_any_channels_go_in_and_nothing_is_said(tmp_path, capfd):
    preprocess = Preprocess(**FIVE, pixel_type="float32")
    export_executorch(LINEAR, tmp_path / "m.pte", preprocess=preprocess)
    pixels = torch.rand(3, 4, 4, 5)
    logits = open_program(tmp_path / "m.pte", preprocess).logits(pixels.numpy())
    with torch.inference_mode():
        expected = LINEAR((pixels.permute(0, 3, 1, 2) - 0.5) / 0.5)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-5)
    assert capfd.readouterr() == ("", "")


@needs_executorch
def test_a_model_that_executorch_cannot_take_is_one_sentence(tmp_path, monkeypatch):
    from executorch import exir

    def fail(*_, **__):
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(exir, "to_edge_transform_and_lower", fail)
    with pytest.raises(BundleError, match=r"cannot take this model \(no kernel\); export it for onnx alone\.$"):
        export_executorch(LINEAR, tmp_path / "m.pte", preprocess=Preprocess(**FIVE))
    assert list(tmp_path.iterdir()) == []
