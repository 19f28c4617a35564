"""How the learning rate moves over a training."""

import math


def warmup_cosine(progress: float, warmup: float, final: float = 0.0) -> float:
    """Return the multiplier of the highest learning rate at a point of the training.

    It rises linearly from 0 to 1 and then falls along half a cosine to ``final``. It depends on the share of the
    training that is done and on nothing else, so it serves a number of epochs and a time budget alike.

    Source: Loshchilov and Hutter, SGDR, arXiv 1608.03983, equation 5, with one cycle; the warm-up is Goyal et al.,
    arXiv 1706.02677, section 2.2.

    Args:
        progress: share of the training that is done; taken as 1 beyond 1.
        warmup: share in which the rate rises, in [0, 1).
        final: multiplier at the end, in [0, 1].
    """
    if progress < warmup:
        return max(0.0, progress) / warmup
    done = min(1.0, (progress - warmup) / (1 - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))
