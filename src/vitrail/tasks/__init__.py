"""What a model is trained to do: the loss, and what counts as correct."""

from vitrail.tasks.classification import Classification, balanced_weights

__all__ = ["Classification", "balanced_weights"]
