"""Training: the loop, its state on disk, the moving average, and the folder of a run."""

from vitrail.training.batch_size import choose_batch_size
from vitrail.training.distillation import Distillation, RememberingTeacher, RepeatingBatches, Teacher
from vitrail.training.ema import Ema, decay_for
from vitrail.training.interrupt import StopRequest, graceful_interrupt
from vitrail.training.log import EpochMetrics, MetricsLog, TrainProgress, read_metrics
from vitrail.training.loop import StepReport, TrainPlan, steps
from vitrail.training.objective import Objective, Supervised
from vitrail.training.run import Run, is_run
from vitrail.training.state import TrainState

__all__ = [
    "Distillation",
    "Ema",
    "EpochMetrics",
    "MetricsLog",
    "Objective",
    "RememberingTeacher",
    "RepeatingBatches",
    "Run",
    "StepReport",
    "StopRequest",
    "Supervised",
    "Teacher",
    "TrainPlan",
    "TrainProgress",
    "TrainState",
    "choose_batch_size",
    "decay_for",
    "graceful_interrupt",
    "is_run",
    "read_metrics",
    "steps",
]
