"""A classifier as one ONNX file that takes the bytes of a picture and knows its own labels.

Axes: B batch, H and W height and width in pixels, C classes.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from torch import Tensor, nn

from vitrail.config import Preprocess
from vitrail.errors import ConfigError
from vitrail.layers.conv import fold
from vitrail.runtime.files import atomic_path
from vitrail.shipping.readout import Readout
from vitrail.version import __version__

OPSET: Final = 20
"""Version of ONNX's operators: the first with an exact Gelu, so that a block's activation is one node."""

INPUT_NAME: Final = "images"
OUTPUT_NAMES: Final = ("logits", "probabilities")


class DeployedClassifier(nn.Module):
    """The model between the two ends that a device needs: bytes in, logits and probabilities out.

    ``(x / peak - mean) / std``, the peak of bytes being 255, is folded into one multiplication and one addition per
    channel. In float32 the two forms differ by at most 3.4e-7 over all 256 byte values (measured with ImageNet's mean
    and std; the values reach 2.6).

    Args:
        model: takes normalised images ``(B, 3, H, W)``, or of other channels, and gives logits ``(B, C)``.
        preprocess: gives peak, mean and std.
        readout: how probabilities are made of the logits.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, preprocess: Preprocess, readout: Readout) -> None:
        super().__init__()
        self.model = model
        self.readout = readout
        mean = torch.tensor(preprocess.mean, dtype=torch.float64).view(-1, 1, 1)
        std = torch.tensor(preprocess.std, dtype=torch.float64).view(-1, 1, 1)
        self.register_buffer("scale", (1 / (preprocess.peak * std)).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(B, C)`` and probabilities ``(B, C)`` of pixels ``(B, H, W, channels)``."""
        # Without contiguous() the strides of the permuted tensor tie the graph to the batch size of the example.
        pixels = images.permute(0, 3, 1, 2).contiguous().float()  # (B, channels, H, W)
        logits = self.model(pixels * self.scale + self.shift)
        return logits, self.readout.activate(logits)


def export_onnx(
    model: nn.Module, path: Path, *, preprocess: Preprocess, classes: Sequence[str], readout: Readout | None = None
) -> None:
    """Write ``model`` as one ONNX file with normalisation, labels and probabilities inside and a dynamic batch.

    The input ``images`` is uint8 RGB ``(B, H, W, 3)``, or has the channels and the type of ``preprocess``, already
    resized to ``preprocess.image_size``: how a picture is resized is told in the file's metadata and not part of the
    graph. The outputs are ``logits`` ``(B, C)`` and
    ``probabilities``, the softmax (or with several labels the sigmoids) of the logits divided by the temperature. Batch
    norms and parallel branches are folded into convolutions. The model itself is left as it was.

    Args:
        model: takes normalised images ``(B, 3, H, W)`` and gives logits ``(B, C)``.
        path: the file to write, whole or not at all.
        preprocess: the size, mean and std that the model was trained with.
        classes: names of the classes in the order of the logits.
        readout: how the logits are read. Default: as one label per image, at temperature 1.

    Raises:
        ConfigError: if the number of classes is not that of the logits.
        StorageError: if the file cannot be written.
    """
    readout = readout or Readout()
    deployed = DeployedClassifier(fold(model).cpu().float(), preprocess, readout).eval()
    graph = _trace(deployed, preprocess)
    num_logits = graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    if num_logits != len(classes):
        raise ConfigError(
            f"The model gives {num_logits} logits but {len(classes)} classes are named; give one name each."
        )
    _drop_exporter_notes(graph)
    onnx.helper.set_model_props(graph, metadata(preprocess, classes, readout))
    graph.producer_name, graph.producer_version = "vitrail", __version__
    onnx.checker.check_model(graph, full_check=True)
    with atomic_path(Path(path)) as temporary:
        onnx.save_model(graph, temporary)


def metadata(preprocess: Preprocess, classes: Sequence[str], readout: Readout) -> dict[str, str]:
    """Return what the file tells about itself: text by name, JSON where it is more than a sentence."""
    told = {
        "vitrail_version": __version__,
        "task": readout.task,
        "labels": json.dumps(list(classes)),
        "preprocess": json.dumps(preprocess.to_dict()),
        "temperature": repr(float(readout.temperature)),
        "input": _describe_input(preprocess),
        "output": f"logits: float32 (batch, {len(classes)}), in the order of labels. "
        "probabilities: softmax of logits divided by temperature.",
    }
    if readout.task == "multilabel":
        told["thresholds"] = json.dumps(list(readout.thresholds))
        told["output"] = (
            f"logits: float32 (batch, {len(classes)}), in the order of labels. probabilities: sigmoid of logits "
            "divided by temperature, of each label by itself; it is given from its threshold on."
        )
    return told


def _describe_input(preprocess: Preprocess) -> str:
    height, width = preprocess.image_size
    inside = "normalisation by mean and std is inside the graph."
    if preprocess.channels is None:
        return (
            f"{INPUT_NAME}: uint8 RGB (batch, {height}, {width}, 3), values 0 to 255. Turn the picture upright by "
            f"its EXIF tag and resize it as preprocess tells; {inside}"
        )
    return (
        f"{INPUT_NAME}: {preprocess.pixel_type} (batch, {height}, {width}, {preprocess.channels}), the picture's "
        f"channels as they are. Resize each as preprocess tells; division by {preprocess.peak:g} and {inside}"
    )


def _trace(deployed: DeployedClassifier, preprocess: Preprocess) -> onnx.ModelProto:
    # A batch of 2: torch.export takes a size of 1 for a constant in some layouts.
    shape, dtype = (2, *preprocess.image_size, preprocess.num_channels), getattr(torch, preprocess.pixel_type)
    example = torch.zeros(shape, dtype=dtype)
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            deployed,
            (example,),
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # the old exporter returns None, dynamo=True does not
    graph: onnx.ModelProto = program.model_proto
    return graph


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings on libraries that are not there and on torch's own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _drop_exporter_notes(model: onnx.ModelProto) -> None:
    """Remove the stack traces and module paths that the exporter writes into every part of the graph.

    They grew a 5.1 MB MobileViT to 6.6 MB and tell where the code lay on the exporting machine.
    """
    graph: Any = model.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
