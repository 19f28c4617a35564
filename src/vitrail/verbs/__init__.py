"""vitrail.verbs."""
