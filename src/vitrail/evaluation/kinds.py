"""What is measured and fitted, whichever the task."""

from vitrail.evaluation.calibration import Calibration
from vitrail.evaluation.metrics import Metrics
from vitrail.evaluation.multilabel import MultiLabelMetrics
from vitrail.evaluation.thresholds import LabelCalibration

Scores = Metrics | MultiLabelMetrics
AnyCalibration = Calibration | LabelCalibration
