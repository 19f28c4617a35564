import pytest
import torch
import torch.distributed as dist
from workers import Model, train, work

from vitrail.errors import ConfigError
from vitrail.optim import Muon8


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_train_what_one_trains(kind, tmp_path):
    torch.multiprocessing.spawn(work, args=(2, kind, str(tmp_path)), nprocs=2)
    single = Model()
    start = {name: value.detach().clone() for name, value in single.named_parameters()}
    train(single, 0, 1)
    first, second = (torch.load(tmp_path / f"{kind}{rank}.pt", weights_only=True) for rank in range(2))
    for name, weight in single.named_parameters():
        assert torch.equal(first[name], second[name])
        moved = (weight.detach() - start[name]).norm()
        assert (first[name] - weight.detach()).norm() < 0.05 * moved + 1e-6, name


def test_releasing_gradients_is_for_one_process(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="for one process"):
        Muon8(Model(), release_gradients=True)
