"""vitrail.data."""
