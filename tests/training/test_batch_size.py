import pytest
import torch

from vitrail.training import choose_batch_size

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("num_images", "on_cpu", "on_gpu"),
    [(1, 1, 1), (10, 10, 10), (100, 16, 16), (640, 32, 32), (2560, 128, 128), (2559, 64, 64), (10**6, 128, 512)],
)
def test_the_rule_keeps_twenty_steps_an_epoch_within_its_bounds(num_images, on_cpu, on_gpu):
    assert choose_batch_size(num_images, CPU) == on_cpu
    assert choose_batch_size(num_images, CUDA) == on_gpu


class FakeGpu:
    """A GPU of 1000 bytes on which an image takes some."""

    def __init__(self, monkeypatch, bytes_per_image):
        self.bytes_per_image, self.peak, self.tried = bytes_per_image, 0, []
        properties = type("Properties", (), {"total_memory": 1000})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def step(self, batch_size):
        self.tried.append(batch_size)
        self.peak = batch_size * self.bytes_per_image
        if self.peak > 1000:
            raise torch.cuda.OutOfMemoryError


@pytest.mark.parametrize(
    ("bytes_per_image", "expected"), [(0.1, 512), (10, 64), (30, 16), (900, 1), (2000, 1), (12.5, 64), (12.6, 32)]
)
def test_on_a_gpu_the_batch_is_the_largest_that_takes_at_most_80_percent(monkeypatch, bytes_per_image, expected):
    gpu = FakeGpu(monkeypatch, bytes_per_image)
    assert choose_batch_size(10**6, CUDA, gpu.step) == expected


def test_an_error_that_is_not_about_memory_is_not_hidden(monkeypatch):
    FakeGpu(monkeypatch, 1)

    def broken(batch_size):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        choose_batch_size(10**6, CUDA, broken)
