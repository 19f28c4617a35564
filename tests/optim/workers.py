"""What each process of `test_distributed` does; importable, as processes that are spawned need it."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vitrail.optim import Muon8

BATCH, STEPS = 8, 3


def build() -> nn.Module:
    """A convolution, a depthwise kernel, fused maps, a vector that is not divisible by two, and a head."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(1, 10, 3, padding=1),
            "depthwise": nn.Conv2d(10, 10, 3, padding=1, groups=10),
            "qkv": nn.Linear(16, 48),
            "mlp": nn.Linear(48, 17),
            "norm": nn.LayerNorm(17),
            "head": nn.Linear(17, 5),
        }
    )


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = build()

    def forward(self, x):
        layers = self.layers
        x = x + layers["depthwise"](layers["conv"](x.view(-1, 1, 4, 4))).mean(dim=1).flatten(1)
        return layers["head"](layers["norm"](layers["mlp"](layers["qkv"](x).relu())))


def train(model: nn.Module, rank: int, world: int) -> Muon8:
    optimizer = Muon8(model, lr=1e-2)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        data = torch.randn(BATCH, 16, generator=generator)
        labels = torch.randint(5, (BATCH,), generator=generator)
        own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        nn.functional.cross_entropy(model(data[own]), labels[own]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def work(rank: int, world: int, kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    model = Model()
    if kind == "ddp":
        train(DistributedDataParallel(model), rank, world)
        weights = {name: value.detach() for name, value in model.named_parameters()}
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (world,))
        fully_shard(model, mesh=mesh)
        optimizer = train(model, rank, world)
        weights = {name: value.full_tensor().detach() for name, value in model.named_parameters()}
        state = optimizer.state[next(p for n, p in model.named_parameters() if "qkv.weight" in n)]
        assert state["momentum"].shape == (48, 16), "every process keeps the whole state"
        other = Muon8(model, lr=1e-2)
        other.load_state_dict(optimizer.state_dict())
        for parameter, values in optimizer.state.items():
            assert all(torch.equal(other.state[parameter][name], value) for name, value in values.items())
    torch.save(weights, Path(folder) / f"{kind}{rank}.pt")
    dist.destroy_process_group()
