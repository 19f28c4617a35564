"""vitrail.reports."""
