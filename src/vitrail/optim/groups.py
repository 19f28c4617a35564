"""Which parameters of a model are decayed towards zero and which are not."""

from typing import Any

from torch import nn

# Their weights are positions in a space or scales, not directions; decaying them only shrinks the signal.
_NEVER_DECAYED = (nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Divide the trainable parameters of ``model`` into a group with weight decay and one without.

    Decayed are matrices and convolution kernels (two axes or more). Not decayed are vectors and scalars (biases,
    norms, scales), embeddings, and what the model itself names in ``no_weight_decay()`` (class token, positions,
    registers). Frozen parameters are in neither group; a parameter shared by two modules is in one of them, once.

    Args:
        model: any module; ``no_weight_decay() -> set[str]`` of parameter names is optional.
        weight_decay: of the first group, at least 0.

    Returns:
        Groups for any `torch.optim.Optimizer`, without empty ones. Beside ``params`` and ``weight_decay`` each has
        ``param_names``, in the order of ``params``.
    """
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    exempt_ids = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _NEVER_DECAYED)
        for parameter in module.parameters(recurse=False)
    }
    decayed: list[tuple[str, nn.Parameter]] = []
    plain: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_plain = parameter.ndim < 2 or name in exempt or id(parameter) in exempt_ids
        (plain if is_plain else decayed).append((name, parameter))
    return [
        {"params": [p for _, p in named], "param_names": [n for n, _ in named], "weight_decay": decay}
        for named, decay in ((decayed, weight_decay), (plain, 0.0))
        if named
    ]
