"""Where weights come from, and the files that are refused."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor

from vitrail.errors import CheckpointError
from vitrail.models import Model, create_model
from vitrail.models.checkpoint import load_checkpoint
from vitrail.models.pretrained import load_pretrained


def small_vit(**options: Any) -> Model:
    torch.manual_seed(0)
    return create_model("vit_micro_patch8", **{"num_classes": 3, "image_size": 16, **options}).eval()


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def test_a_name_on_the_hub_is_fetched_into_its_cache_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "model.safetensors", small_vit().state_dict())
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "vit_micro_patch8_16", "label_names": ["ash", "birch", "cedar"]})
    )
    asked = []

    def download(repository: str, file: str, *, revision: str | None) -> str:
        asked.append((repository, file, revision))
        if not (tmp_path / file).exists():
            raise huggingface_hub.errors.EntryNotFoundError(file)
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    report = load_pretrained(small_vit(), "hf-hub:trees/vit@v2")
    assert report.classes == ("ash", "birch", "cedar")
    files = ("model.safetensors", "config.json", "preprocessor_config.json")
    assert asked == [("trees/vit", file, "v2") for file in files]


def test_the_cache_of_the_hub_is_enough_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The layout of the cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    repository = tmp_path / "models--trees--vit"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    write(snapshot / "model.safetensors", small_vit().state_dict())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_pretrained(small_vit(), "hf-hub:trees/vit").layout == "timm"
    with pytest.raises(CheckpointError, match="hf-hub:trees/other is not in the local cache"):
        load_pretrained(small_vit(), "hf-hub:trees/other")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LocalEntryNotFoundError("no"), "not in the local cache and the hub cannot be reached"),
        (huggingface_hub.errors.EntryNotFoundError("no"), "pickled weights"),
        (OSError("404 Client Error.\nmore"), "404 Client Error. Names are"),
        (huggingface_hub.errors.HFValidationError("bad name."), "bad name. Names are"),
    ],
)
def test_a_name_that_the_hub_does_not_give_is_told_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def download(*_: str, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_pretrained(small_vit(), "hf-hub:trees/vit")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.bin", "a.ckpt", "disguised.safetensors"])
@pytest.mark.parametrize("writer", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_is_refused_with_the_reason_and_a_way_out(
    tmp_path: Path, name: str, writer: Callable[[object, Path], object]
) -> None:
    writer({"w": torch.zeros(2)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"can run any code.*convert it once"):
        load_pretrained(small_vit(), tmp_path / name)


def test_a_folder_with_pickled_weights_alone_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin looks like a pickle"):
        load_pretrained(small_vit(), tmp_path)


def test_a_missing_file_gets_the_nearest_one_suggested(tmp_path: Path) -> None:
    write(tmp_path / "flowers.safetensors", {"w": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"Did you mean 'flowers\.safetensors'"):
        load_checkpoint(tmp_path / "flower.safetensors")
    with pytest.raises(CheckpointError, match=r"Give one of its files: flowers\.safetensors"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist either"):
        load_checkpoint(tmp_path / "nowhere" / "a.safetensors")


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors = small_vit().state_dict()
    tensors["norm.bias"][3] = float("nan")
    with pytest.raises(CheckpointError, match=r"norm\.bias has values that are not finite"):
        load_pretrained(small_vit(), write(tmp_path / "a.safetensors", tensors))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in small_vit().state_dict().items()}
    model = small_vit()
    load_pretrained(model, write(tmp_path / "a.safetensors", tensors))
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, tensors["head.weight"].float())


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.complex64])
def test_numbers_that_are_no_plain_floats_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {**small_vit().state_dict(), "head.weight": torch.zeros(3, 128).to(dtype)}
    with pytest.raises(CheckpointError, match=r"head\.weight .*(stored as|of int8)"):
        load_pretrained(small_vit(), write(tmp_path / "a.safetensors", tensors))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty or cut off: it has 0 bytes"),
        (b"1234567", "it has 7 bytes"),
        (struct.pack("<Q", 2**60) + b"{}", "cut off, damaged or no safetensors file"),
        (struct.pack("<Q", 100) + b"{}", "cut off, damaged or no safetensors file"),
        (struct.pack("<Q", 4) + b"nope", "cut off, damaged or no safetensors file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "cut off, damaged or no safetensors file"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", ["F4", "F32", "F8_E8M0", "BOOL", "C64"])
@pytest.mark.parametrize("shape", [[0, 2**62, 4], [2**62, 0], [0]])
def test_a_header_with_absurd_shapes_is_refused(tmp_path: Path, kind: str, shape: list[int]) -> None:
    names = ["cls_token", "head.weight", "patch_embed.proj.weight", "pos_embed"]
    header = json.dumps({name: {"dtype": kind, "shape": shape, "data_offsets": [0, 0]} for name in names}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError):
        load_pretrained(small_vit(), path)
