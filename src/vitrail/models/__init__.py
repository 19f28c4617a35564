"""vitrail.models."""
