"""The two ways in which onnxruntime makes a graph int8.

"dynamic": matrix products with weights alone, scaled as they come; convolutions, and products of two activations, stay
fp32. "static": convolutions and all matrix products, with scales from example images. Weights are signed, activations
unsigned, which is the fast pair on x86.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

KINDS = ("fp32", "int8 dynamic", "int8 static")


class Examples:
    """Hands images, each (1, H, W, C) of bytes, to onnxruntime's calibration one after the other."""

    def __init__(self, images: Iterable[np.ndarray]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next input, or None at the end."""
        found = next(self._images, None)
        return None if found is None else {"images": found}


def quantize(plain: Path, kind: str, target: Path, examples: Iterable[np.ndarray]) -> None:
    """Write an int8 graph of a kind; ``examples`` are only looked at for "int8 static"."""
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(plain, prepared)
        if kind == "int8 dynamic":
            quantize_dynamic(prepared, target, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
            return
        quantize_static(
            prepared,
            target,
            Examples(examples),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        )
