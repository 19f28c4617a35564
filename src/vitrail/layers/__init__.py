"""vitrail.layers."""
