"""Schedule-free AdamW: the average of its steps is what is measured and kept."""

import csv
import sys

import pytest
import torch
from safetensors.torch import load_file

import vitrail
from vitrail.errors import MissingExtraError
from vitrail.optim import averaged_weights, create_optimizer

pytest.importorskip("schedulefree")


def test_the_averaged_weights_are_the_mean_of_all_steps(make_vit, train_steps):
    model = make_vit()
    optimizer = create_optimizer(model, "schedule-free", lr=1e-3, weight_decay=0.05)
    parameter, points = model.head.weight, []
    for step in range(5):
        train_steps(model, optimizer, range(step, step + 1))
        points.append(optimizer.state[parameter]["z"].clone())
    before = parameter.detach().clone()
    with averaged_weights(optimizer):
        torch.testing.assert_close(parameter.detach(), torch.stack(points).mean(dim=0), rtol=0, atol=1e-6)  # seen: 9e-8
    torch.testing.assert_close(parameter.detach(), before, rtol=0, atol=1e-6)  # seen: 6e-8
    assert (before - points[-1]).norm() > 1e-3, "and is not where gradients are taken"


def test_other_optimizers_have_no_average_of_their_own(make_vit):
    model = make_vit()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with averaged_weights(create_optimizer(model, "muon8", lr=1e-3, weight_decay=0.05)):
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_training_keeps_the_average_at_an_even_rate(tmp_path):
    torch.set_num_threads(1)
    result = vitrail.train(
        *("digits",), model="vit_micro_patch4", optimizer="schedule-free", epochs=3, batch_size=256, image_size=8,
        device="cpu", workers=1, quiet=True, out=tmp_path, warmup=0.0, lr=4e-3,
    )  # fmt: skip
    rows = list(csv.DictReader((result.path / "metrics.csv").open(encoding="utf-8")))
    assert {float(row["lr"]) for row in rows} == {4e-3}
    kept, state = (load_file(result.path / f"{name}.safetensors") for name in ("model", "state"))
    assert not any(name.startswith("ema/") for name in state)
    assert not torch.equal(kept["head.weight"], state["model/head.weight"])
    index = next(name for name in state if name.endswith("/z") and state[name].shape == kept["head.weight"].shape)
    # Where gradients are taken lies nine tenths of the way from the last step to the average.
    average = (state["model/head.weight"] - 0.1 * state[index]) / 0.9
    torch.testing.assert_close(kept["head.weight"], average, rtol=0, atol=1e-5)


def test_a_missing_library_is_named(monkeypatch, make_vit):
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(MissingExtraError, match=r"vitrail\[schedulefree\]"):
        create_optimizer(make_vit(), "schedule-free", lr=1e-3, weight_decay=0.05)
