"""Which parameters of a model are decayed towards zero and which are not."""

from typing import Any

from torch import nn

from vitrail.errors import ConfigError

# Their weights are positions in a space or scales, not directions; decaying them only shrinks the signal.
_NEVER_DECAYED = (nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Divide the trainable parameters of ``model`` into a group with weight decay and one without.

    Decayed are matrices and convolution kernels (two axes or more). Not decayed are vectors and scalars (biases,
    norms, scales), embeddings, and what the model itself names in ``no_weight_decay()`` (class token, positions,
    registers). Frozen parameters are in neither group; a parameter shared by two modules is in one of them, once.

    With a ``layer_decay`` below 1 every depth of the model's ``layer_groups()`` has two groups of its own, and the
    depth d of D learns at ``layer_decay ** (D - 1 - d)`` of the rate: early layers, whose features serve any images,
    move less than late ones. Source: Bao et al., BEiT, arXiv 2106.08254, appendix; Clark et al., ELECTRA, arXiv
    2003.10555, section 3.1.

    Args:
        model: any module; ``no_weight_decay() -> set[str]`` of parameter names is optional.
        weight_decay: of the first group, at least 0.
        layer_decay: factor of the rate from a depth to the one before it, in (0, 1].

    Returns:
        Groups for any `torch.optim.Optimizer`, without empty ones, the head's depth first. Beside ``params`` and
        ``weight_decay`` each has ``param_names``, in the order of ``params``, and below 1 ``lr_scale``, its share of
        the rate.
    """
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    exempt_ids = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _NEVER_DECAYED)
        for parameter in module.parameters(recurse=False)
    }
    depths = _depths(model) if layer_decay < 1 else {}
    groups: dict[tuple[int, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_plain = parameter.ndim < 2 or name in exempt or id(parameter) in exempt_ids
            groups.setdefault((depths.get(name, 0), is_plain), []).append((name, parameter))
    return [
        {
            "params": [parameter for _, parameter in named],
            "param_names": [name for name, _ in named],
            "weight_decay": 0.0 if is_plain else weight_decay,
            **({"lr_scale": layer_decay**from_head} if layer_decay < 1 else {}),
        }
        for (from_head, is_plain), named in sorted(groups.items(), key=lambda item: item[0])
    ]


def _depths(model: nn.Module) -> dict[str, int]:
    """Return how many layers above it each parameter has, by its name: 0 for those of the head.

    Raises:
        ConfigError: if the model does not tell its layers.
    """
    if not hasattr(model, "layer_groups"):
        raise ConfigError("layer_decay needs a model that tells its layers, and this one does not. Set it to 1.")
    layers = model.layer_groups()  # type: ignore[operator]
    above = {prefix: len(layers) - 1 - depth for depth, prefixes in enumerate(layers) for prefix in prefixes}
    return {
        name: above[max((prefix for prefix in above if name.startswith(prefix)), key=len)]
        for name, _ in model.named_parameters()
    }
