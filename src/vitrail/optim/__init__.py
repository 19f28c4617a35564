"""vitrail.optim."""
