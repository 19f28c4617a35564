"""One kit per task: all that the verbs do otherwise from task to task."""

from collections.abc import Mapping
from typing import Any, Final

from vitrail.config import TaskName
from vitrail.verbs.kits.classification import ClassificationKit
from vitrail.verbs.kits.contract import Answer, EpochScores, Kit
from vitrail.verbs.kits.multilabel import MultiLabelKit

KITS: Final[Mapping[TaskName, Kit[Any, Any]]] = {"classification": ClassificationKit(), "multilabel": MultiLabelKit()}

__all__ = ["KITS", "Answer", "EpochScores", "Kit"]
