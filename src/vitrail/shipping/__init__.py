"""vitrail.shipping."""
