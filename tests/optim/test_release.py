import gc
import weakref

import pytest
import torch
from torch import nn

from vitrail.errors import ConfigError
from vitrail.optim import Muon8
from vitrail.optim.release import block_of


def test_releasing_gradients_gives_the_same_weights_and_leaves_no_gradient(make_vit, train_steps):
    models = [make_vit(), make_vit()]
    losses = [
        train_steps(model, Muon8(model, lr=1e-3, release_gradients=release), range(4))
        for model, release in zip(models, (False, True), strict=True)
    ]
    # Bit for bit where matrices are alone or together in a product; seen: 0.
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)


def test_gradients_of_different_blocks_never_coexist(make_vit):
    model = make_vit()
    optimizer = Muon8(model, lr=1e-3, release_gradients=True)
    blocks_with_gradients = []

    def count(_):
        parameters = model.named_parameters()
        alive = {name.split(".")[1] for name, p in parameters if name.startswith("blocks.") and p.grad is not None}
        blocks_with_gradients.append(len(alive))

    for block in model.blocks:  # called when a block's first gradient is there
        block.mlp.fc2.bias.register_post_accumulate_grad_hook(count)
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert max(blocks_with_gradients) == 1
    assert len(blocks_with_gradients) == 6
    assert all(parameter.grad is None for parameter in model.parameters())
    optimizer.step()
    assert optimizer.param_groups[0]["steps"] == 1


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("blocks.3.attn.qkv.weight", "blocks.3"),
        ("module.blocks.3.mlp.0.weight", "module.blocks.3"),
        ("stages.1.blocks.12.norm.bias", "stages.1.blocks.12"),
        ("features.1.0.mlp.0.weight", "features.1.0"),
        ("encoder.layers.encoder_layer_11.ln_1.weight", "encoder.layers.encoder_layer_11"),
        ("encoder.layers.encoder_layer_11.self_attention.in_proj_weight", "encoder.layers.encoder_layer_11"),
        ("vit.encoder.layer.7.attention.attention.query.weight", "vit.encoder.layer.7"),
        ("layers.2.weight", "layers.2"),
        ("4.bias", "4"),
        ("stem.conv1.weight", "stem"),
        ("pos_embed", "pos_embed"),
    ],
)
def test_blocks_are_found_in_the_names_of_every_library(name, block):
    assert block_of(name) == block


def test_a_block_of_which_a_part_has_no_gradient_is_updated_by_step():
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(8, 8), "partly": nn.ModuleDict({n: nn.Linear(8, 8) for n in "ab"})})
    optimizer = Muon8(model, lr=1e-3, release_gradients=True)
    before = model["partly"]["a"].weight.detach().clone()
    model["partly"]["a"](model["used"](torch.randn(2, 8))).sum().backward()
    assert torch.equal(model["partly"]["a"].weight, before)
    optimizer.step()
    assert not torch.equal(model["partly"]["a"].weight, before)


def test_accumulation_and_closures_are_refused(make_vit):
    model = make_vit()
    optimizer = Muon8(model, release_gradients=True)
    images = torch.randn(2, 3, 16, 16)
    model(images).sum().backward()
    with pytest.raises(
        ConfigError, match=r"second gradient before optimizer.step\(\).*leave out gradient accumulation"
    ):
        model(images).sum().backward()
    with pytest.raises(ConfigError, match="no closure"):
        optimizer.step(lambda: 0.0)


def test_hooks_do_not_keep_the_optimizer_alive():
    layer = nn.Linear(8, 8)
    optimizer = Muon8(layer, release_gradients=True)
    alive = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert alive() is None
    layer(torch.randn(1, 8)).sum().backward()
    assert layer.weight.grad is not None
