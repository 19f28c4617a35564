"""vitrail: from a folder of images to a measured, verified, phone-ready vision transformer.

The names below are the public interface. Each is loaded on first use, so that ``import vitrail`` takes no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

from vitrail.version import __version__

if TYPE_CHECKING:
    from vitrail.config import DataConfig, Preprocess
    from vitrail.data import open_dataset
    from vitrail.errors import VitrailError
    from vitrail.models import create_model, list_models
    from vitrail.models.checkpoint import load_checkpoint, save_checkpoint
    from vitrail.models.pretrained import load_pretrained
    from vitrail.verbs.admit import admit
    from vitrail.verbs.bench import bench
    from vitrail.verbs.check import check
    from vitrail.verbs.demo import demo
    from vitrail.verbs.evaluate import evaluate
    from vitrail.verbs.export import export
    from vitrail.verbs.models import describe_models
    from vitrail.verbs.predict import predict
    from vitrail.verbs.train import train

_HOME: Final = {
    "DataConfig": "vitrail.config",
    "Preprocess": "vitrail.config",
    "VitrailError": "vitrail.errors",
    "admit": "vitrail.verbs.admit",
    "bench": "vitrail.verbs.bench",
    "check": "vitrail.verbs.check",
    "create_model": "vitrail.models",
    "demo": "vitrail.verbs.demo",
    "describe_models": "vitrail.verbs.models",
    "evaluate": "vitrail.verbs.evaluate",
    "export": "vitrail.verbs.export",
    "list_models": "vitrail.models",
    "load_checkpoint": "vitrail.models.checkpoint",
    "load_pretrained": "vitrail.models.pretrained",
    "open_dataset": "vitrail.data",
    "predict": "vitrail.verbs.predict",
    "save_checkpoint": "vitrail.models.checkpoint",
    "train": "vitrail.verbs.train",
}

__all__ = [
    "DataConfig",
    "Preprocess",
    "VitrailError",
    "__version__",
    "admit",
    "bench",
    "check",
    "create_model",
    "demo",
    "describe_models",
    "evaluate",
    "export",
    "list_models",
    "load_checkpoint",
    "load_pretrained",
    "open_dataset",
    "predict",
    "save_checkpoint",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vitrail' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
