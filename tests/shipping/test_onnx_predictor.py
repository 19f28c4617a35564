import numpy as np
import pytest

from vitrail.config import Preprocess
from vitrail.errors import BundleError
from vitrail.evaluation.predict import Predictor, TorchPredictor
from vitrail.shipping.predictor import OnnxPredictor, is_bundle


def test_a_bundle_answers_as_the_model_does(exported, model) -> None:
    predictor: Predictor = OnnxPredictor(exported.folder, threads=1)
    assert predictor.classes == ("zero", "one", "two", "three", "vier und fünf")
    assert predictor.preprocess == Preprocess(
        image_size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    logits = predictor.logits(exported.images)
    expected = TorchPredictor(model, predictor.classes, predictor.preprocess).logits(exported.images)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)  # measured: 2.7e-6


def test_images_need_not_be_contiguous(exported) -> None:
    predictor = OnnxPredictor(exported.folder)
    mirrored = exported.images[:2, :, ::-1]
    np.testing.assert_array_equal(predictor.logits(mirrored), predictor.logits(mirrored.copy()))


def test_calibration_comes_with_the_bundle(exported) -> None:
    assert OnnxPredictor(exported.folder).calibration == {"temperature": 1.7, "reject_threshold": 0.4}


def test_a_folder_that_is_no_bundle_is_told_apart(exported, tmp_path) -> None:
    assert is_bundle(exported.folder)
    assert is_bundle(str(exported.folder))
    assert not is_bundle(tmp_path)
    assert not is_bundle(exported.folder / "model.onnx")
    with pytest.raises(BundleError, match="is not a bundle"):
        OnnxPredictor(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{}", "null", '{"classes": 3}', '{"classes": [], "preprocess": {"image_size": 3}}']
)
def test_a_damaged_description_is_one_sentence(bundle, text) -> None:
    (bundle / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=r"bundle\.json cannot be read"):
        OnnxPredictor(bundle)


def test_a_truncated_model_is_one_sentence(bundle) -> None:
    content = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match="onnxruntime cannot open"):
        OnnxPredictor(bundle)
