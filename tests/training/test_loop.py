import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from vitrail.errors import ConfigError, TrainingError
from vitrail.optim import warmup_cosine
from vitrail.runtime.precision import Precision
from vitrail.tasks import Classification
from vitrail.training import Supervised, TrainPlan, steps, window
from vitrail.training.window import Window

TASK = Supervised(Classification(3))


def test_the_loop_agrees_with_a_plain_loop_of_torch(make_state, batches, fp32):
    state = make_state()
    reference = copy.deepcopy(state.model).train()
    matrices = [p for p in reference.parameters() if p.ndim == 2]
    vectors = [p for p in reference.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}], lr=0.01
    )
    losses = [r.loss for r in steps(state, TASK, batches(), TrainPlan(epochs=2, warmup=0.25), fp32)]
    expected = []
    for step in range(8):
        batch = list(batches().epoch(step // 4))[step % 4]
        optimizer.zero_grad()
        loss = F.cross_entropy(reference(batch.images), batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * warmup_cosine((step + 0.5) / 8, 0.25)
        optimizer.step()
        expected.append(loss.item())
    # Worst case measured: 6e-8; the fused update rounds differently.
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-5)
    for mine, theirs in zip(state.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_reports_number_the_steps_and_mark_the_ends(make_state, batches, fp32):
    state = make_state()
    reports = list(steps(state, TASK, batches((4, 4, 2)), TrainPlan(epochs=2), fp32))
    assert [(r.step, r.epoch, r.epoch_end, r.last) for r in reports] == [
        (1, 0, False, False),
        (2, 0, False, False),
        (3, 0, True, False),
        (4, 1, False, False),
        (5, 1, False, False),
        (6, 1, True, True),
    ]
    assert [r.progress for r in reports] == pytest.approx([n / 6 for n in range(1, 7)])
    assert all(0 <= r.wait_share <= 1 and r.images_per_s > 0 for r in reports)
    assert (state.epoch, state.batch, state.step, state.epoch_images) == (2, 0, 6, 0)


def test_the_share_of_waiting_is_that_of_the_epoch(make_state, batches, fp32, monkeypatch):
    now = 0.0
    monkeypatch.setattr(window, "time", SimpleNamespace(perf_counter=lambda: now))

    class Slow:
        """Takes 1 s for each batch of the first epoch, and 3 s for each of the second."""

        def __init__(self):
            self.fast = batches((4, 4))

        def __len__(self):
            return len(self.fast)

        def epoch(self, epoch, start_batch=0):
            nonlocal now
            for batch in self.fast.epoch(epoch, start_batch):
                now += 1 + 2 * epoch
                yield batch

    def forward(images):
        nonlocal now
        now += 1.0
        return state.model(images)

    state = make_state()
    reports = []
    for report in steps(state, TASK, Slow(), TrainPlan(epochs=2), fp32, forward=forward):
        reports.append(report)
        now += 100.0  # the caller's own time
    assert [report.wait_share for report in reports] == [0.5, 0.5, 0.75, 0.75]


def test_epoch_means_are_over_images_not_over_batches(make_state, batches, fp32):
    reports = list(steps(make_state(), TASK, batches((6, 2)), TrainPlan(epochs=1), fp32))
    assert reports[-1].epoch_loss == pytest.approx((6 * reports[0].loss + 2 * reports[1].loss) / 8)
    assert reports[-1].epoch_accuracy == pytest.approx((6 * reports[0].accuracy + 2 * reports[1].accuracy) / 8)


def test_accumulated_batches_give_the_gradient_of_one_large_batch(make_state, batches, fp32):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))  # no batch norm: it sees the batch size
    parts = list(batches((4, 4, 1)).epoch(0))
    images, targets = torch.cat([p.images for p in parts]), torch.cat([p.targets for p in parts])
    expected = torch.autograd.grad(F.cross_entropy(model(images), targets), list(model.parameters()))
    state = make_state(optimizer="sgd")
    state.model, state.ema = model, None
    state.optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = copy.deepcopy(model)
    plan = TrainPlan(epochs=1, warmup=0.0, accumulate=4, grad_clip=0.0)
    (report,) = steps(state, TASK, batches((4, 4, 1)), plan, fp32)
    for old, new, gradient in zip(before.parameters(), model.parameters(), expected, strict=True):
        torch.testing.assert_close((old - new) / report.lr, gradient, rtol=0, atol=1e-6)  # worst measured: 1.2e-7
    assert report.grad_norm == pytest.approx(torch.cat([g.flatten() for g in expected]).norm().item(), rel=1e-5)
    assert report.loss == pytest.approx(F.cross_entropy(before(images), targets).item(), rel=1e-5)


def test_the_last_step_of_an_epoch_takes_the_batches_that_are_left(make_state, batches, fp32):
    state = make_state()
    reports = list(steps(state, TASK, batches((4, 4, 4)), TrainPlan(epochs=2, accumulate=2), fp32))
    assert [r.epoch_end for r in reports] == [False, True, False, True]
    assert reports[-1].progress == 1.0


def test_gradients_are_clipped_to_the_norm_and_the_report_has_the_norm_before(make_state, batches, fp32):
    state = make_state()
    state.optimizer = torch.optim.SGD(state.model.parameters(), lr=1.0)
    before = torch.cat([p.detach().clone().flatten() for p in state.model.parameters()])
    report = next(steps(state, TASK, batches(), TrainPlan(epochs=1, warmup=0.0, grad_clip=0.01), fp32))
    after = torch.cat([p.detach().flatten() for p in state.model.parameters()])
    assert report.grad_norm > 0.01
    assert (after - before).norm().item() / report.lr == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_first_non_finite_loss_stops_with_its_step_and_leaves_the_weights(make_state, batches, fp32, accumulate):
    state = make_state()
    seen = []

    def forward(images):
        seen.append(1)
        return state.model(images) * (math.inf if len(seen) > 2 * accumulate else 1.0)

    running = steps(state, TASK, batches(), TrainPlan(epochs=3, accumulate=accumulate), fp32, forward=forward)
    next(running)
    next(running)
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    with pytest.raises(TrainingError, match=r"step 3, .*loss is nan.*learning rate of .*--lr"):
        next(running)
    assert state.step == 2
    for name, parameter in state.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_a_non_finite_gradient_under_a_finite_loss_stops_too(make_state, batches, fp32):
    state = make_state()
    state.model.head.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingError, match=r"step 1, .*gradient's norm nan"):
        list(steps(state, TASK, batches(), TrainPlan(epochs=1), fp32))


def test_a_late_reading_still_names_the_first_bad_step(make_state, batches, fp32, monkeypatch):
    """On a GPU the numbers are read every 20 steps; here the CPU is treated so."""
    monkeypatch.setattr("vitrail.training.loop.Window", lambda state, steps_per_read: Window(state, 20))
    state = make_state()
    calls = []

    def forward(images):
        calls.append(1)
        return state.model(images) * (math.nan if len(calls) == 3 else 1.0)

    with pytest.raises(TrainingError, match="step 3, in epoch 1"):
        list(steps(state, TASK, batches((4,) * 6), TrainPlan(epochs=1), fp32, forward=forward))
    assert len(calls) == 6  # noticed at the end of the epoch, before anybody saves


def test_late_readings_add_up_to_the_same_epoch(make_state, batches, fp32, monkeypatch):
    often = list(steps(make_state(), TASK, batches((4,) * 6), TrainPlan(epochs=2), fp32))
    monkeypatch.setattr("vitrail.training.loop.Window", lambda state, steps_per_read: Window(state, 20))
    seldom = list(steps(make_state(), TASK, batches((4,) * 6), TrainPlan(epochs=2), fp32))
    assert len({r.loss for r in seldom}) < len(seldom)
    for index in (5, 11):
        assert seldom[index].epoch_loss == pytest.approx(often[index].epoch_loss)
        assert seldom[index].epoch_accuracy == pytest.approx(often[index].epoch_accuracy)


def test_a_time_budget_drives_the_learning_rate_to_its_end(make_state, batches, fp32, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("vitrail.training.window.time.perf_counter", lambda: now[0])
    state = make_state(lr=1.0)
    reports = []
    for report in steps(state, TASK, batches(), TrainPlan(time_budget_s=10.0, warmup=0.0), fp32):
        reports.append(report)
        now[0] += 1.0  # what the caller takes, as for evaluation, counts
    assert [r.lr for r in reports] == pytest.approx([warmup_cosine(n / 10, 0.0) for n in range(10)])
    assert state.elapsed_s == 10.0


def test_with_epochs_and_time_the_one_that_is_over_first_ends_it(make_state, batches, fp32):
    state = make_state()
    assert len(list(steps(state, TASK, batches(), TrainPlan(epochs=1, time_budget_s=3600), fp32))) == 4
    state = make_state()
    state.elapsed_s = 5.0
    assert not list(steps(state, TASK, batches(), TrainPlan(epochs=1, time_budget_s=5.0), fp32))


def test_a_plan_without_an_end_is_refused():
    with pytest.raises(ConfigError, match="epochs, time_budget"):
        TrainPlan()


def test_a_stop_request_makes_the_current_step_the_last(make_state, batches, fp32):
    state = make_state()
    reports = list(steps(state, TASK, batches(), TrainPlan(epochs=5), fp32, stop=lambda: state.step >= 2))
    assert [r.last for r in reports] == [False, False, True]
    assert (state.step, state.batch, state.epoch) == (3, 3, 0)


def test_bf16_autocast_reaches_the_forward_pass(make_state, batches):
    state = make_state()
    dtypes = []

    def forward(images):
        logits = state.model(images)
        dtypes.append(logits.dtype)
        return logits

    bf16 = Precision(torch.bfloat16, "cpu", "bf16.")
    next(steps(state, TASK, batches(), TrainPlan(epochs=1), bf16, forward=forward))
    assert dtypes == [torch.bfloat16]
    assert all(p.dtype == torch.float32 for p in state.model.parameters())
