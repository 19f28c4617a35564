"""vitrail.training."""
