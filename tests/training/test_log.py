import io

import pytest
from rich.console import Console

from vitrail.errors import DataError
from vitrail.training import EpochMetrics, MetricsLog, StepReport, TrainProgress, read_metrics


def row(epoch, **values):
    base = {"step": 10 * epoch, "lr": 1e-3, "train_loss": 1 / 3, "train_accuracy": 0.5, "images_per_s": 99.5}
    return EpochMetrics(epoch=epoch, elapsed_s=1.5, **(base | values))


def report(progress, epoch=0):
    return StepReport(
        step=1, epoch=epoch, epoch_end=False, last=False, progress=progress, lr=0.1, loss=1.0, accuracy=0.5,
        grad_norm=1.0, epoch_loss=1.25, epoch_accuracy=0.5, images_per_s=200.0, wait_share=0.0,
    )  # fmt: skip


def test_rows_come_back_exactly(tmp_path):
    log = MetricsLog(tmp_path / "metrics.csv")
    log.append(row(0))
    log.append(row(1, val_loss=0.1 + 0.2, val_accuracy=1.0))
    assert read_metrics(tmp_path / "metrics.csv") == log.rows == [row(0), row(1, val_loss=0.1 + 0.2, val_accuracy=1.0)]


def test_a_resumed_log_drops_the_epochs_that_are_done_again(tmp_path):
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path)
    for epoch in range(4):
        log.append(row(epoch))
    resumed = MetricsLog(path, resume_epoch=2)
    resumed.append(row(2, lr=7.0))
    assert [(r.epoch, r.lr) for r in read_metrics(path)] == [(0, 1e-3), (1, 1e-3), (2, 7.0)]


@pytest.mark.parametrize("text", ["epoch,step\n1,2\n", "hello\nworld\n", None])
def test_a_file_that_is_no_log_is_refused(tmp_path, text):
    path = tmp_path / "metrics.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match="no log of a training"):
        read_metrics(path)


def test_without_a_terminal_each_epoch_is_one_plain_line():
    out, now = io.StringIO(), iter([0.0, 30.0])
    with TrainProgress(10, console=Console(file=out, width=200), clock=lambda: next(now)) as progress:
        progress.say("[bold] stays as it is")
        progress.step(report(0.0))
        progress.step(report(0.25))
        progress.epoch(row(0, val_loss=0.5, val_accuracy=0.815))
    assert out.getvalue().splitlines() == [
        "[bold] stays as it is",
        "epoch 1/10  train loss 0.333  val loss 0.500  val acc 81.5%  100 img/s  1:30 left",
    ]


def test_waiting_for_images_is_told_where_it_is_not_small():
    out = io.StringIO()
    with TrainProgress(2, console=Console(file=out, width=200)) as progress:
        progress.epoch(row(0, wait_share=0.312))
        progress.epoch(row(1, wait_share=0.049))
    first, second = out.getvalue().splitlines()
    assert first.endswith("100 img/s  31% of the time waiting for images")
    assert second.endswith("100 img/s")


def test_a_log_from_before_there_was_a_wait_share_is_read(tmp_path):
    path = tmp_path / "metrics.csv"
    MetricsLog(path).append(row(0, wait_share=0.25))
    lines = [line.split(",") for line in path.read_text().splitlines()]
    at = lines[0].index("wait_share")
    path.write_text("".join(",".join(cells[:at] + cells[at + 1 :]) + "\n" for cells in lines))
    assert read_metrics(path) == [row(0)]


def test_on_a_terminal_the_bar_tells_loss_accuracy_speed_and_time_left():
    out, now = io.StringIO(), iter([0.0, 100.0])
    console = Console(file=out, width=120, force_terminal=True)
    with TrainProgress(None, console=console, clock=lambda: next(now)) as progress:
        progress.step(report(0.0))
        progress.step(report(0.01, epoch=2))
    for part in ("epoch 3", "loss 1.250", "acc 50.0%", "200 img/s", "2:45:00 left"):
        assert part in out.getvalue()


def test_quiet_shows_nothing():
    out = io.StringIO()
    with TrainProgress(1, quiet=True, console=Console(file=out, force_terminal=True)) as progress:
        progress.say("a")
        progress.step(report(0.5))
        progress.epoch(row(0))
    assert out.getvalue() == ""
