"""Classification: one label per image, its loss, and what counts as correct.

Axes: B images, C classes.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from vitrail.errors import ConfigError


@dataclass(frozen=True)
class Classification:
    """The task of naming the one class of each image."""

    num_classes: int
    """At least 2."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over all classes, in [0, 1).

    Source: Szegedy et al., Rethinking the Inception Architecture, arXiv 1512.00567, section 7.
    """

    def __post_init__(self) -> None:
        """Refuse a task that cannot be learnt."""
        if self.num_classes < 2:
            raise ConfigError(f"num_classes is {self.num_classes}; a classification needs at least 2 classes.")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing is {self.label_smoothing}; it takes a number from 0 and below 1.")

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy as a scalar in fp32, whatever the precision of the logits.

        Args:
            logits: (B, C).
            targets: (B,) class indices, or (B, C) probabilities as mixup and CutMix make them.
        """
        if targets.is_floating_point():
            targets = targets.float()
        return F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)

    def correct(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return (B,) booleans: whether the largest logit is the label's, or the most probable label's of a mixture.

        Args:
            logits: (B, C).
            targets: (B,) class indices, or (B, C) probabilities.
        """
        labels = targets.argmax(dim=1) if targets.ndim == 2 else targets
        return logits.argmax(dim=1) == labels
