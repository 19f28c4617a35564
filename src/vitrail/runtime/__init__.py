"""vitrail.runtime."""
