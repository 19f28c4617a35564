"""vitrail.evaluation."""
