"""What a model is trained to do: the loss, what counts as correct, and what is learnt of a teacher."""

from vitrail.tasks.classification import Classification, balanced_weights
from vitrail.tasks.contract import DistillMode, Task
from vitrail.tasks.multilabel import MultiLabel, balanced_pairs

__all__ = ["Classification", "DistillMode", "MultiLabel", "Task", "balanced_pairs", "balanced_weights"]
