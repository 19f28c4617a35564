"""The verbs: one file each, the composition of the rooms below. ``run(config)`` serves the command line."""
