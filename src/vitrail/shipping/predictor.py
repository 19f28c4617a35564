"""A bundle as a predictor: the same question as to a model in PyTorch, answered by onnxruntime."""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vitrail.config import Preprocess, TaskName
from vitrail.errors import BundleError, VitrailError

RUNTIME: Final = f"onnxruntime {onnxruntime.__version__}"


class OnnxPredictor:
    """Answers of a bundle's model; offers what `vitrail.evaluation.predict.Predictor` asks for.

    Args:
        folder: a bundle that `vitrail export` wrote.
        threads: threads of onnxruntime, at least 1. Default: its own choice, one per processor core.

    Raises:
        BundleError: if the folder is no bundle or its files cannot be read.
    """

    def __init__(self, folder: str | Path, *, threads: int | None = None) -> None:
        folder = Path(folder)
        if not is_bundle(folder):
            raise BundleError(
                f"{folder} is not a bundle: it needs bundle.json and model.onnx, as vitrail export writes."
            )
        try:
            description = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
            self.task: TaskName = description["task"]
            self.classes: tuple[str, ...] = tuple(description["classes"])
            self.preprocess = Preprocess.from_dict(description["preprocess"])
            self.calibration: dict[str, Any] = dict(description["calibration"])
        except (OSError, ValueError, TypeError, KeyError, VitrailError) as error:
            raise BundleError(f"{folder / 'bundle.json'} cannot be read ({error}); export the bundle again.") from error
        self._session = open_session(folder / "model.onnx", threads=threads)

    def logits(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return logits ``(B, C)`` of prepared images ``(B, H, W, channels)``."""
        return run_logits(self._session, pixels)


def is_bundle(path: str | Path) -> bool:
    """Tell whether ``path`` is a folder with the two files that prediction needs."""
    return all((Path(path) / name).is_file() for name in ("bundle.json", "model.onnx"))


def open_session(path: Path, *, threads: int | None = None) -> Any:
    """Open an ONNX file in onnxruntime on the CPU.

    Raises:
        BundleError: if onnxruntime cannot open it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        # Its fallback would print a banner about the failure and try the same again.
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise BundleError(f"onnxruntime cannot open {path} ({error}); export the bundle again.") from error


def run_logits(session: Any, pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Return logits ``(B, C)`` of images ``(B, H, W, channels)``."""
    (logits,) = session.run(["logits"], {"images": np.ascontiguousarray(pixels)})
    return np.asarray(logits, dtype=np.float32)
