"""What leaves the house: a model in a runtime's format, the proof that it answers alike, and the check of that proof.

Nothing is imported here, so that `vitrail.shipping.check` runs with numpy and onnxruntime alone.
"""
