import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file

from vitrail.errors import CheckpointError, StorageError
from vitrail.optim import parameter_groups
from vitrail.tasks import Classification
from vitrail.training import Supervised, TrainPlan, TrainState, steps

TASK = Supervised(Classification(3, label_smoothing=0.1))
PLAN = TrainPlan(epochs=3, accumulate=1)


def run(state, batches, precision, count):
    running = steps(state, TASK, batches(), PLAN, precision)
    return [next(running).loss for _ in range(count)]


def same(first, second):
    for name in ("model", "ema"):
        mine, theirs = getattr(first, name), getattr(second, name)
        mine, theirs = (getattr(m, "module", m).state_dict() for m in (mine, theirs))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name
    mine, theirs = first.optimizer.state_dict(), second.optimizer.state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    torch.testing.assert_close(mine["state"], theirs["state"], rtol=0, atol=0)
    assert first.ema.num_updates == second.ema.num_updates


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("before", [2, 4, 7], ids=["mid-epoch", "epoch end", "second epoch"])
def test_a_resumed_training_goes_on_bit_for_bit(make_state, batches, fp32, tmp_path, optimizer, before):
    whole = make_state(dropout=0.5, optimizer=optimizer)
    losses = run(whole, batches, fp32, before + 4)

    first = make_state(dropout=0.5, optimizer=optimizer)
    run(first, batches, fp32, before)
    first.save(tmp_path / "state.safetensors")
    second = make_state(seed=99, dropout=0.5, optimizer=optimizer, lr=7.0)
    torch.rand(5)  # a fresh process has drawn other numbers
    second.load(tmp_path / "state.safetensors")
    assert run(second, batches, fp32, 4) == losses[before:]
    same(second, whole)
    assert (second.step, second.epoch, second.batch) == (whole.step, whole.epoch, whole.batch)
    assert second.epoch_loss_sum == whole.epoch_loss_sum


def test_counters_and_time_survive(make_state, tmp_path):
    state = make_state()
    state.epoch, state.elapsed_s = 4, 12.5
    assert state.record(0.5, 0)
    assert not state.record(0.5, 1)
    state.save(tmp_path / "s")
    other = make_state()
    other.load(tmp_path / "s")
    assert (other.epoch, other.elapsed_s, other.best_metric, other.best_epoch) == (4, 12.5, 0.5, 0)
    assert other.epochs_without_improvement == 1
    assert other.record(0.6, 2)
    assert other.epochs_without_improvement == 0


class OddOptimizer(torch.optim.SGD):
    """Keeps all kinds of state that optimizers keep."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] |= {
                    "step": torch.tensor(3.0),
                    "buffer": torch.full_like(p, 0.25),
                    "count": 7,
                    "nothing": None,
                    "flag": True,
                }


def test_every_kind_of_optimizer_state_survives(make_state, tmp_path):
    state, other = make_state(), make_state()
    for each in (state, other):
        each.optimizer = OddOptimizer(parameter_groups(each.model, 0.1), lr=0.1)
    state.optimizer.step()
    state.save(tmp_path / "s")
    other.load(tmp_path / "s")
    same(other, state)
    entry = other.optimizer.state[next(other.model.parameters())]
    assert (entry["count"], entry["nothing"], entry["flag"], entry["step"].ndim) == (7, None, True, 0)


def test_tied_weights_and_views_are_saved(make_state, tmp_path):
    state, other = make_state(width=12), make_state(seed=1, width=12)
    for each in (state, other):
        each.model.twin = each.model.embed
        each.ema = None
        each.model.register_buffer("view", torch.arange(6.0)[2:4])
    state.save(tmp_path / "s")
    other.load(tmp_path / "s")
    assert torch.equal(other.model.twin.weight, state.model.embed.weight)
    assert other.model.view.tolist() == [2, 3]
    assert (tmp_path / "s").stat().st_size < 20_000


@pytest.mark.parametrize(
    "damage", ["truncated", "emptied", "not one", "tampered header", "flipped bit", "plain weights"]
)
def test_a_damaged_file_is_refused(make_state, tmp_path, damage):
    state, path = make_state(), tmp_path / "state.safetensors"
    state.save(path)
    data = path.read_bytes()
    damaged = {
        "truncated": data[:-100],
        "emptied": b"",
        "not one": b"hello, this is text",
        "tampered header": data[:40] + b"\xff\xff" + data[42:],
        "flipped bit": data[:-1] + bytes([data[-1] ^ 1]),
    }
    if damage == "plain weights":
        save_file({"a": torch.zeros(1)}, path)
    else:
        path.write_bytes(damaged[damage])
    with pytest.raises(CheckpointError, match="is damaged"):
        state.load(path)


def test_a_missing_file_is_refused(make_state, tmp_path):
    with pytest.raises(CheckpointError, match="no saved training at"):
        make_state().load(tmp_path / "none")


def test_the_state_of_another_model_or_optimizer_is_refused(make_state, tmp_path):
    make_state().save(tmp_path / "s")
    for other in (make_state(width=9), make_state()):
        if other.model.embed.out_features == 8:
            other.optimizer = torch.optim.SGD(other.model.parameters(), lr=0.1)
        with pytest.raises(CheckpointError, match="does not fit this training"):
            other.load(tmp_path / "s")


SAVER = textwrap.dedent("""
    import os, resource, signal, sys
    from pathlib import Path
    import torch
    from torch import nn
    from vitrail.errors import StorageError
    from vitrail.training import TrainState
    torch.manual_seed(0)
    model = nn.Linear(300, 300)
    state = TrainState(model=model, optimizer=torch.optim.AdamW(model.parameters()))
    path, how = Path(sys.argv[1]), sys.argv[2]
    state.step = 1
    state.save(path)
    state.step = 2
    if how == "killed":
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
    elif how == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        state.save(path)
    except StorageError as error:
        print(error)
        sys.exit(7)
""")


@pytest.mark.parametrize(
    ("how", "exit_code", "message"),
    [("killed", -signal.SIGKILL, ""), ("full", 7, "cannot be written")],
)
def test_a_save_that_fails_or_is_killed_leaves_the_old_state_whole(tmp_path, how, exit_code, message):
    path = tmp_path / "state.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", SAVER, str(path), how], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == exit_code, done.stderr
    assert message in done.stdout
    model = torch.nn.Linear(300, 300)
    state = TrainState(model=model, optimizer=torch.optim.AdamW(model.parameters()))
    state.load(path)
    assert state.step == 1
    if how != "killed":
        assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_noticed_before_the_old_state_is_gone(make_state, tmp_path, monkeypatch):
    state, path = make_state(), tmp_path / "state.safetensors"
    state.save(path)

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    state.step = 2
    with pytest.raises(StorageError, match="The disk is full"):
        state.save(path)
    state.load(path)
    assert state.step == 0
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_a_storage_error(make_state, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        make_state().save(tmp_path / "file" / "state")
