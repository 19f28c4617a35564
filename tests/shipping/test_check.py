import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from vitrail.shipping import check
from vitrail.shipping.check import check_bundle, main

CHECKS = ["files", "description", "labels", "model", "interface", "metadata", "golden", "batch", "calibration"]

# Imports fail as they do where nothing but numpy and onnxruntime is installed.
BARE_PYTHON = """
import runpy, sys
absent = {"torch", "vitrail", "onnx", "onnxscript", "PIL", "scipy", "sklearn", "transformers"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Blocker())
script, *sys.argv[1:] = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


def failure(folder: Path) -> tuple[str, str]:
    """Name and sentence of the one failed check."""
    result = check_bundle(folder)
    assert not result.ok
    assert [item.ok for item in result.checks] == [True] * (len(result.checks) - 1) + [False]
    last = result.checks[-1]
    assert "\n" not in last.detail
    assert "Traceback" not in last.detail
    return last.name, last.detail


def run_alone(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-B", "-c", BARE_PYTHON, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def edit_json(folder: Path, change: Callable[[dict], None]) -> None:
    data = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    change(data)
    (folder / "bundle.json").write_text(json.dumps(data), encoding="utf-8")


def edit_model(folder: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(folder / "model.onnx")
    change(model)
    onnx.save(model, folder / "model.onnx")


def test_a_fresh_bundle_passes_every_check(exported) -> None:
    result = check_bundle(exported.folder)
    assert result.ok
    assert [item.name for item in result.checks] == CHECKS
    assert "15 of 15 images get their label" in result.checks[6].detail


def test_the_travelling_check_needs_numpy_and_onnxruntime_alone(bundle) -> None:
    done = run_alone(bundle / "check.py")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [["ok", name] for name in CHECKS]
    done = run_alone(bundle / "check.py", bundle / "nowhere")
    assert (done.returncode, done.stderr) == (1, "")
    assert "is not a folder" in done.stdout
    assert "do not use it" in done.stdout


def test_the_check_module_does_not_load_torch_or_onnx() -> None:
    code = "import sys, vitrail.shipping.check; print(sorted({'torch', 'onnx', 'PIL', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_prints_its_use_and_counts_its_arguments(bundle, capsys) -> None:
    assert main(["--help"]) == 0
    assert main(["one", "two"]) == 2
    assert capsys.readouterr().out.count("usage:") == 2
    assert main([str(bundle)]) == 0


@pytest.mark.parametrize("name", ["README.md", "bundle.json", "check.py", "golden.npz", "labels.txt", "model.onnx"])
def test_every_altered_or_missing_file_is_named(bundle, name) -> None:
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[:-1])
    assert failure(bundle) == ("files", f"Altered since the export: {name}.")
    (bundle / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert failure(bundle) == ("files", f"Altered since the export: {name}.")
    (bundle / name).unlink()
    assert failure(bundle) == ("files", f"Missing: {name}.")


def test_a_file_that_does_not_belong_is_named(bundle) -> None:
    (bundle / "extra.so").write_bytes(b"")
    assert failure(bundle) == ("files", "Not part of the bundle: 'extra.so'.")


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "sub/file", "..", "a\\b", "C:x", "", "a b"])
def test_no_path_is_followed_out_of_the_folder(bundle, path) -> None:
    (bundle.parent / "outside").write_bytes(b"")
    with (bundle / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  {path}\n")
    name, sentence = failure(bundle)
    assert name == "files"
    assert "not a checksum and a plain file name" in sentence


def test_links_folders_and_pipes_are_not_files(bundle) -> None:
    labels = bundle / "labels.txt"
    content = labels.read_bytes()
    outside = bundle.parent / "labels.txt"
    outside.write_bytes(content)
    for replace in (lambda: labels.symlink_to(outside), labels.mkdir, lambda: os.mkfifo(labels)):
        labels.unlink() if not labels.is_dir() else labels.rmdir()
        replace()
        assert failure(bundle) == ("files", "Not a plain file: labels.txt.")
    (bundle / "SHA256SUMS").unlink()
    (bundle / "SHA256SUMS").symlink_to(outside)
    assert failure(bundle) == ("files", "SHA256SUMS is missing or not a plain file.")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("null", "lacks or misstates"),
        ("[1]", "lacks or misstates"),
        ('{"format": 1}', "lacks or misstates"),
        ('{"format": 2}', "has format 2; this check knows format 1"),
    ],
)
def test_a_description_that_cannot_be_understood_is_one_sentence(bundle, sign, text, sentence) -> None:
    (bundle / "bundle.json").write_text(text)
    sign(bundle)
    name, detail = failure(bundle)
    assert name == "description"
    assert sentence in detail


@pytest.mark.parametrize("value", [None, "x", -1, 0, float("nan"), float("inf"), [], {}, 10**400])
@pytest.mark.parametrize(("section", "key"), [("calibration", "temperature"), ("verification", "logit_limit")])
def test_numbers_of_the_description_that_no_export_writes_are_refused(bundle, sign, section, key, value) -> None:
    edit_json(bundle, lambda data: data[section].update({key: value}))
    sign(bundle)
    assert failure(bundle)[0] == "description"


def swap_classes(data: dict) -> None:
    data["classes"][:2] = data["classes"][1::-1]


def test_labels_are_the_same_in_every_place(bundle, sign) -> None:
    edit_json(bundle, swap_classes)
    sign(bundle)
    assert failure(bundle)[0] == "labels"
    told = json.loads((bundle / "bundle.json").read_text())
    (bundle / "labels.txt").write_text("".join(f"{name}\n" for name in told["classes"]), encoding="utf-8")
    sign(bundle)
    assert failure(bundle) == ("metadata", "The labels inside the model are not those of bundle.json.")


def test_preprocessing_inside_the_model_is_that_of_the_description(bundle, sign) -> None:
    edit_json(bundle, lambda data: data["preprocess"].update(resize="pad"))
    sign(bundle)
    assert failure(bundle) == ("metadata", "The preprocess inside the model are not those of bundle.json.")


def test_another_temperature_is_noticed_in_the_probabilities(bundle, sign) -> None:
    edit_json(bundle, lambda data: data["calibration"].update(temperature=1.69))
    sign(bundle)
    assert failure(bundle)[0] == "calibration"


def test_one_changed_weight_is_noticed_in_the_golden_answers(bundle, sign) -> None:
    def change(model: onnx.ModelProto) -> None:
        bias = next(item for item in model.graph.initializer if item.name.endswith("head.bias"))
        values = onnx.numpy_helper.to_array(bias).copy()
        values[0] += 0.01
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))

    edit_model(bundle, change)
    sign(bundle)
    name, sentence = failure(bundle)
    assert name == "golden"
    assert "largest logit difference 0.01 (limit" in sentence


def test_a_fixed_batch_and_another_interface_are_noticed(bundle, sign) -> None:
    def fix_batch(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 15

    edit_model(bundle, fix_batch)
    sign(bundle)
    assert failure(bundle) == ("interface", "The model takes 15 images at a time, not any number.")
    edit_json(bundle, lambda data: data["input"].update(shape=["batch", 32, 48, 3]))
    sign(bundle)
    assert failure(bundle)[0] == "interface"


def test_metadata_that_is_not_text_is_one_sentence(bundle, sign) -> None:
    content = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").write_bytes(content.replace(b"classification", b"\xc0lassification"))
    sign(bundle)
    assert failure(bundle) == ("metadata", "The model has names or metadata that are not UTF-8 text.")


def test_names_that_are_not_text_are_one_sentence_and_print_nothing(bundle, sign, capfd) -> None:
    content = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").write_bytes(content.replace(b"\x06images", b"\x06\xffmages", 1))
    sign(bundle)
    assert failure(bundle)[0] == "model"
    assert capfd.readouterr() == ("", "")


def test_weights_in_another_file_are_refused(bundle, sign) -> None:
    model = onnx.load(bundle / "model.onnx")
    onnx.save(model, bundle / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    sign(bundle)
    assert failure(bundle) == ("model", "model.onnx keeps weights in another file; a bundle's model is one file.")


def save_golden(folder: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(folder / "golden.npz", "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def npy(array: np.ndarray, *, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=pickled)
    return file.getvalue()


def npy_header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})
    return file.getvalue()


LOGITS = npy(np.zeros((15, 5), np.float32))
IMAGES = npy(np.zeros((15, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({}, "golden.npz holds []"),
        ({"images.npy": IMAGES}, "golden.npz holds"),
        ({"images.npy": IMAGES, "logits.npy": LOGITS, "../x.npy": LOGITS}, "golden.npz holds"),
        ({"images.npy": IMAGES, "logits.npy": b""}, "cannot be read"),
        ({"images.npy": b"not numpy", "logits.npy": LOGITS}, "cannot be read"),
        ({"images.npy": npy_header((15, 32, 32, 3)), "logits.npy": LOGITS}, "cannot be read"),
        ({"images.npy": npy_header((2**40, 32, 32, 3)), "logits.npy": LOGITS}, "is not uint8 of shape"),
        ({"images.npy": npy(np.array([print], object), pickled=True), "logits.npy": LOGITS}, "is not uint8 of shape"),
        ({"images.npy": IMAGES, "logits.npy": npy(np.zeros((15, 5)))}, "is not float32 of shape"),
        ({"images.npy": IMAGES, "logits.npy": npy(np.full((15, 5), np.nan, np.float32))}, "gives other answers"),
    ],
)
def test_golden_arrays_that_no_export_writes_are_refused(bundle, sign, members, sentence) -> None:
    save_golden(bundle, members)
    sign(bundle)
    name, detail = failure(bundle)
    assert name == "golden"
    assert sentence in detail


def test_a_zip_bomb_is_refused_unread(bundle, sign, monkeypatch) -> None:
    monkeypatch.setattr(check, "MAX_GOLDEN_BYTES", 2**20)
    save_golden(bundle, {"logits.npy": LOGITS, "images.npy": bytes(2**20)})
    sign(bundle)
    assert failure(bundle) == ("golden", "golden.npz unpacks to more than 1048576 bytes and was not read.")


def test_huge_text_is_not_read(bundle, sign) -> None:
    with (bundle / "bundle.json").open("ab") as file:
        file.truncate(17 * 2**20)
    sign(bundle)
    assert failure(bundle) == ("description", "bundle.json has 17825792 bytes; at most 16777216 are read.")


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut short, or with some bytes replaced, doubled or left out."""
    place = int(rng.integers(0, max(1, len(content))))
    noise = rng.bytes(int(rng.integers(1, 9)))
    kinds = (content[:place], content[:place] + noise + content[place + len(noise) :], content[:place] + noise)
    return kinds[int(rng.integers(3))] if rng.random() < 0.9 else content[:place] + content[place // 2 :]


@pytest.mark.parametrize("name", ["SHA256SUMS", "bundle.json", "golden.npz", "labels.txt", "model.onnx"])
@pytest.mark.parametrize("signed", [False, True])
def test_no_damage_makes_the_check_fall_over(bundle, sign, name, signed) -> None:
    rng = np.random.default_rng(0)
    content = (bundle / name).read_bytes()
    for _ in range(12):
        changed = damaged(content, rng)
        (bundle / name).write_bytes(changed)
        if signed and name != "SHA256SUMS":
            sign(bundle)
            # Signed damage may be harmless (the last digit of a weight): only a sentence for each failure is asked for.
            result = check_bundle(bundle)
            assert result.ok or "\n" not in result.checks[-1].detail
        elif changed != content:
            assert failure(bundle)[0] == "files"


def test_a_folder_without_anything_and_a_file_are_not_bundles(tmp_path, bundle) -> None:
    assert failure(tmp_path / "nothing")[0] == "files"
    assert failure(bundle / "model.onnx")[0] == "files"
    shutil.rmtree(bundle)
    bundle.mkdir()
    assert failure(bundle) == ("files", "SHA256SUMS is missing or not a plain file.")
