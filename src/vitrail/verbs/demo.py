"""`vitrail demo`: the whole way on the built-in handwritten digits, and where everything lies."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vitrail.config import DemoConfig, from_options
from vitrail.data import display_name
from vitrail.errors import INTERRUPTED, BundleError
from vitrail.evaluation.metrics import Metrics
from vitrail.verbs.check import check
from vitrail.verbs.export import Export, export
from vitrail.verbs.train import TrainResult, train


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demo made."""

    training: TrainResult
    bundle: Path


def demo(**options: Any) -> Demo:
    """Train a small ViT with local enhancement and fusion on the digits, measure, export and verify it.

    Args:
        options: fields of `vitrail.config.DemoConfig`, as the flags of ``vitrail demo``.

    Raises:
        ConfigError: for an option or value that is not allowed.
        VitrailError: whatever the verbs on the way raise.
        KeyboardInterrupt: if the training is interrupted; it is saved and can be resumed.
    """
    config = from_options(DemoConfig, options)
    training = _train(config)
    if training.interrupted:
        raise KeyboardInterrupt
    return Demo(training=training, bundle=_ship(training, config).path)


def run(config: DemoConfig) -> int:
    """Serve the command line: the same, with a word before each step and a list of what was made."""
    console = Console(highlight=False)
    console.print("1. Train on scikit-learn's 1,797 handwritten digits; a fifth of them is held out for the test.")
    training = _train(config)
    if training.interrupted:
        return INTERRUPTED
    console.print("2. Export to ONNX, and compare with PyTorch on every validation image.")
    exported = _ship(training, config)
    measured = training.metrics["test"]
    assert isinstance(measured, Metrics), "the digits have one label each"
    accuracy = measured.accuracy
    assert accuracy.value is not None, "the digits have test images"
    console.print(
        f"\nDone in {training.elapsed_s:.0f} s of training: {accuracy.value:.1%} "
        f"[{accuracy.low:.1%}, {accuracy.high:.1%}] of {measured.num_images} test images are right.\n"
        f"The exported model: {exported.parity.summary()}\n\n"
        f"  report   {display_name(training.report_path)}   (open it in a browser)\n"
        f"  run      {display_name(training.path)}   (configuration, weights, metrics)\n"
        f"  bundle   {display_name(exported.path)}   (model.onnx and its own check.py)\n\n"
        "Now with images of your own, one folder per class:  vitrail train FOLDER",
        markup=False,
        soft_wrap=True,
    )
    return 0


def _train(config: DemoConfig) -> TrainResult:
    # Digits of 8 by 8 pixels, enlarged until the last of four stages has 2 by 2 positions. The rate is high because the
    # training is short.
    return train(
        "digits",
        model="lucarne_xs",
        image_size=64,
        local=True,
        fusion=True,
        epochs=config.epochs,
        batch_size=64,
        lr=4e-3,
        seed=config.seed,
        out=config.out,
        name="demo",
    )


def _ship(training: TrainResult, config: DemoConfig) -> Export:
    exported = export(training.path, out=config.out, name="demo")
    result = check(exported.path)
    if not result.ok:
        raise BundleError(f"The bundle does not pass its own check: {result.checks[-1].detail}")
    return exported
