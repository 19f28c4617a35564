"""The predictor feeds the model exactly the normalised pixels, and leaves it as it was."""

import numpy as np
import pytest
import torch
from torch import nn

from vitrail.config import Preprocess
from vitrail.data.loader import EvalBatch
from vitrail.evaluation.predict import TorchPredictor, collect
from vitrail.runtime.precision import Precision

PREPROCESS = Preprocess(image_size=(4, 6), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class Recorder(nn.Module):
    """Keeps what it was given, and answers with the mean of each channel."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.BatchNorm2d(3).eval()

    def forward(self, images):
        self.images, self.was_training = images, self.training
        return images.mean(dim=(2, 3))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(256, size=(5, 4, 6, 3), dtype=np.uint8)


def test_the_model_sees_the_normalised_pixels_to_the_last_bit(pixels):
    model = Recorder()
    logits = TorchPredictor(model, ("r", "g", "b"), PREPROCESS).logits(pixels)
    mean, std = (np.array(values, np.float32) for values in (PREPROCESS.mean, PREPROCESS.std))
    expected = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    assert np.array_equal(model.images.permute(0, 2, 3, 1).numpy(), expected)
    assert (logits.shape, logits.dtype) == ((5, 3), np.float32)


def test_every_module_gets_its_own_mode_back_even_after_an_error(pixels):
    model = Recorder().train()
    model.frozen.eval()
    predictor = TorchPredictor(model, ("r", "g", "b"), PREPROCESS)
    predictor.logits(pixels)
    assert model.was_training is False
    with pytest.raises(TypeError):
        predictor.logits(None)
    with pytest.raises(RuntimeError):
        predictor.logits(pixels[..., :2])
    assert (model.training, model.norm.training, model.frozen.training) == (True, True, False)


def test_pixels_in_any_memory_order_give_the_same_logits(pixels):
    predictor = TorchPredictor(Recorder(), ("r", "g", "b"), PREPROCESS)
    assert np.array_equal(predictor.logits(pixels[::-1]), predictor.logits(pixels)[::-1])


def test_bf16_is_used_where_it_is_asked_for_and_answers_are_float32(pixels):
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 3))
    precision = Precision(torch.bfloat16, "cpu", "bf16.")
    exact = TorchPredictor(model, ("r", "g", "b"), PREPROCESS).logits(pixels)
    rounded = TorchPredictor(model, ("r", "g", "b"), PREPROCESS, precision=precision).logits(pixels)
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.05  # measured: 0.002 to 0.007 over 50 draws of the weights


def test_collect_keeps_the_order_and_the_last_small_batch(pixels):
    predictor = TorchPredictor(Recorder(), ("r", "g", "b"), PREPROCESS)
    batches = [
        EvalBatch(pixels=part, labels=labels, indices=indices)
        for labels, indices, part in zip(
            np.split(np.arange(5) % 3, [2, 4]),
            np.split(np.arange(10, 15), [2, 4]),
            np.split(pixels, [2, 4]),
            strict=True,
        )
    ]
    outputs = collect(predictor, batches)
    assert np.allclose(outputs.logits, predictor.logits(pixels))
    assert outputs.labels.tolist() == [0, 1, 2, 0, 1]
    assert outputs.indices.tolist() == [10, 11, 12, 13, 14]


def test_collecting_nothing_gives_empty_arrays_of_the_right_shape():
    outputs = collect(TorchPredictor(Recorder(), ("r", "g", "b"), PREPROCESS), [])
    assert outputs.logits.shape == (0, 3)
    assert outputs.labels.shape == (0,)
