"""A head that learns before the rest: the rest computes as in evaluation and stays what it is, statistics too."""

from torch import nn

from vitrail.training.state import TrainState


def set_training(state: TrainState, head_only: bool) -> None:
    """Put everything that is trained in training mode, or only the head and what is thrown away with the teacher.

    With ``head_only`` the rest has no gradients and computes as in evaluation, so that its batch norms keep their
    statistics. The modes of the modules and the gradients are all that changes; they follow from the state's epoch, so
    a resumed training has them too.

    Args:
        state: whose optimizer holds every parameter that may learn.
        head_only: whether the epoch is one of those in which the head learns alone.
    """
    if state.model.training and not head_only:
        return
    learning = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    if not head_only:
        state.model.train()
        for parameter in learning:
            parameter.requires_grad_(True)
        return
    head = _head(state.model)
    state.model.eval()
    head.train()
    kept = {
        id(parameter) for module in (head, state.companion) if module is not None for parameter in module.parameters()
    }
    for parameter in learning:
        parameter.requires_grad_(id(parameter) in kept)


def _head(model: nn.Module) -> nn.Module:
    return model.get_submodule(str(getattr(model, "head_name", "head")))
