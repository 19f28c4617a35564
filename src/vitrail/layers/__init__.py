"""Tensor modules that know nothing of models: attention, blocks, embeddings, pooling, local enhancement, fusion."""
