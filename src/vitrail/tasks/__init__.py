"""vitrail.tasks."""
