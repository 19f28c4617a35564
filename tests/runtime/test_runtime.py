import getpass
import json
import platform
import subprocess
import sys

import pytest
import torch

from vitrail.errors import ConfigError, StorageError
from vitrail.runtime import memory, precision
from vitrail.runtime.compile import compile_model
from vitrail.runtime.device import describe_machine, resolve_device
from vitrail.runtime.precision import choose_precision
from vitrail.runtime.tensors import write_tensors

CPU = torch.device("cpu")


def test_devices_are_found_or_refused_with_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    with pytest.raises(ConfigError, match=r"does not have\. It has: cpu"):
        resolve_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 0)
    with pytest.raises(ConfigError, match=r"'cuda:2'.*It has: cuda:0, cuda:1, cpu"):
        resolve_device("cuda:2")
    for name in ("gpu", "", "cuda:", "cpu:x"):
        with pytest.raises(ConfigError, match="it takes auto, cpu"):
            resolve_device(name)


def test_the_machine_is_described_without_telling_whose_it_is():
    text = json.dumps(describe_machine(), allow_nan=False)
    machine = json.loads(text)
    assert machine["cores"] >= 1
    assert machine["memory_gib"] > 0
    assert machine["versions"]["torch"] == torch.__version__
    values = set(text.replace('"', " ").replace(",", " ").split())
    assert platform.node() not in values
    assert getpass.getuser() not in values
    assert sys.prefix not in text


def test_auto_is_bf16_exactly_where_the_cpu_multiplies_it(monkeypatch):
    for features, expected in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features)
        monkeypatch.setattr(precision, "_is_amd_cpu", lambda: False)
        assert choose_precision("auto", CPU).dtype == expected
    assert "emulates" in choose_precision("bf16", CPU).note
    with pytest.raises(ConfigError, match="precision is 'fp16'"):
        choose_precision("fp16", CPU)


def test_autocast_runs_products_in_the_chosen_precision():
    left = torch.randn(8, 8)
    for name, expected in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with choose_precision(name, CPU).autocast():
            assert (left @ left).dtype == expected


@pytest.fixture
def matmul_switch():
    switch = torch.backends.mkldnn.matmul
    before = switch.fp32_precision
    switch.fp32_precision = "none"
    yield switch
    switch.fp32_precision = before


def test_fp32_products_stay_fp32_accurate(matmul_switch):
    choose_precision("fp32", CPU)
    left, right = torch.randn(2, 300, 300)
    exact = left.double() @ right.double()
    assert (left @ right - exact).norm() / exact.norm() < 1e-5  # measured: 3e-7; inputs rounded to bf16 give 3e-3


def test_the_onednn_switch_is_taken_back_where_it_rounds(matmul_switch, monkeypatch):
    monkeypatch.setattr(precision, "_is_amd_cpu", lambda: True)
    monkeypatch.setattr(precision, "_matmul_error", lambda: 3e-3)
    assert choose_precision("fp32", CPU).note == "fp32."
    assert matmul_switch.fp32_precision == "none"
    monkeypatch.setattr(precision, "_matmul_error", lambda: 4e-7)
    assert "oneDNN" in choose_precision("fp32", CPU).note
    assert matmul_switch.fp32_precision == "bf16"


def test_a_convolutional_model_takes_the_onednn_switch_back_from_the_one_before(matmul_switch, monkeypatch):
    monkeypatch.setattr(precision, "_is_amd_cpu", lambda: True)
    monkeypatch.setattr(precision, "_matmul_error", lambda: 4e-7)
    choose_precision("fp32", CPU, convolutional=True)
    assert matmul_switch.fp32_precision == "none"
    choose_precision("fp32", CPU)
    choose_precision("fp32", CPU)
    assert precision.onednn_multiplies_fp32()
    assert choose_precision("fp32", CPU, convolutional=True).note == "fp32."
    assert matmul_switch.fp32_precision == "none"
    assert not precision.onednn_multiplies_fp32()


def test_the_switch_is_not_touched_on_other_cpus(matmul_switch, monkeypatch):
    monkeypatch.setattr(precision, "_is_amd_cpu", lambda: False)
    choose_precision("fp32", CPU)
    assert matmul_switch.fp32_precision == "none"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_for_the_next_allocation():
    script = """
import sys
import torch
from vitrail.runtime.memory import keep_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = resident()
block = torch.ones(64 * 2**20 // 4)
del block
print(resident() - before)
"""
    freed = {}
    for how in ("keep", "plain"):
        done = subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True, check=True)
        freed[how] = int(done.stdout)
    assert freed["keep"] > 60 * 2**20
    assert freed["plain"] < 30 * 2**20


def test_memory_obeys_the_limit_of_a_container(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert 0 < memory.available_memory_bytes() <= memory.total_memory_bytes()
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert memory.total_memory_bytes() == 1_000_000
    assert memory.available_memory_bytes() == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory_bytes() > 1_000_000


def test_compile_falls_back_with_a_sentence(monkeypatch):
    model = torch.nn.Linear(2, 2)
    assert compile_model(model, "off", CPU, None)[0] is model
    same, note = compile_model(model, "auto", CPU, 1e6)
    assert same is model
    assert "not used" in note
    same, note = compile_model(model, "auto", torch.device("cuda"), 10.0)
    assert same is model
    assert "300 s" in note
    monkeypatch.setattr("vitrail.runtime.compile.shutil.which", lambda name: None)
    same, note = compile_model(model, "on", CPU, None)
    assert same is model
    assert "a C++ compiler is missing" in note


def test_compile_shares_the_weights(monkeypatch):
    monkeypatch.setattr("vitrail.runtime.compile.shutil.which", lambda name: name)
    model = torch.nn.Linear(2, 2)
    compiled, note = compile_model(model, "on", CPU, None)
    assert compiled is not model
    assert "on" in note
    assert next(compiled.parameters()) is model.weight


def test_a_file_of_tensors_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        from safetensors import SafetensorError

        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("vitrail.runtime.tensors.save_file", full)
    with pytest.raises(StorageError, match="The disk is full"):
        write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)}, {})
    assert not list(tmp_path.iterdir())
