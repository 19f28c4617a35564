"""A bundle with a program for phones. ExecuTorch is played by onnxruntime where only its answers matter."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from vitrail.config import Preprocess
from vitrail.errors import ParityError
from vitrail.shipping import bundle as bundle_module
from vitrail.shipping import check_program, verify
from vitrail.shipping.bundle import export_bundle
from vitrail.shipping.readme import bundle_readme
from vitrail.shipping.verify import verify_bundle

needs_executorch = pytest.mark.skipif(
    not find_spec("executorch"), reason="needs executorch, which is not here: pip install '.[executorch]'"
)


class Played:
    """The runtime, its program and its method in one: answers by the ONNX file beside the program."""

    change = staticmethod(lambda logits, probabilities: (logits, probabilities))

    @classmethod
    def get(cls):
        return cls()

    def load_program(self, path):
        self.session = onnxruntime.InferenceSession(path.with_name("model.onnx"))
        return self

    def load_method(self, name):
        assert name == "forward"
        return self

    def execute(self, inputs):
        answers = self.session.run(["logits", "probabilities"], {"images": inputs[0].numpy()})
        return [torch.from_numpy(answer) for answer in self.change(*answers)]


@pytest.fixture
def program(bundle, sign):
    """A bundle that says it has a program."""
    (bundle / "model.pte").write_bytes(b"no program")
    sign(bundle)
    return bundle


@pytest.mark.parametrize(
    ("change", "ok", "says"),
    [
        (lambda logits, shares: (logits, shares), True, "largest logit difference of 15 images"),
        (lambda logits, shares: (logits + np.float32(0.1), shares), False, "other answers than at its export"),
        (lambda logits, shares: (logits * np.float32("nan"), shares), False, "other answers than at its export"),
        (lambda logits, shares: (logits[:, :4], shares), False, r"logits of shape \(15, 4\)"),
        (lambda logits, shares: (logits, shares * np.float32(1.001)), False, "probabilities are not those"),
    ],
)
def test_the_program_gives_the_golden_answers_or_the_first_difference_is_named(monkeypatch, program, change, ok, says):
    monkeypatch.setitem(sys.modules, "executorch", types.ModuleType("executorch"))
    monkeypatch.setitem(sys.modules, "executorch.runtime", types.SimpleNamespace(Runtime=Played))
    monkeypatch.setattr(Played, "change", staticmethod(change))
    passed, finding = check_program.check_program(program)
    assert passed is ok
    assert re.search(says, finding)


@pytest.fixture
def runtime(monkeypatch, tmp_path):
    """Put a module in the place of executorch, for other processes too."""

    def write(code: str) -> None:
        (tmp_path / "library" / "executorch").mkdir(parents=True)
        (tmp_path / "library" / "executorch" / "__init__.py").write_text("")
        (tmp_path / "library" / "executorch" / "runtime.py").write_text(textwrap.dedent(code))
        places = [str(tmp_path / "library"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, places)))

    return write


@pytest.mark.parametrize(
    ("code", "ok", "says"),
    [
        ("raise ImportError('not for this processor')", None, "does not import here (not for this processor)."),
        ("import os; os.abort()", False, "ExecuTorch ended with exit code -6."),
        ("raise RuntimeError('two\\nlines')", False, "cannot be checked: RuntimeError two lines"),
        ("import time; time.sleep(60)", False, "did not answer within 2 s."),
    ],
)
def test_whatever_executorch_does_is_one_sentence(runtime, program, monkeypatch, code, ok, says):
    runtime(code)
    monkeypatch.setattr(verify, "RUN_SECONDS", 2 if "sleep" in code else 600)
    result = verify_bundle(program)
    assert result.ok is (ok is None)
    assert (result.checks[-1].name, result.checks[-1].ok) == ("executorch", ok)
    assert says in result.checks[-1].detail
    assert result.lines()[-2].startswith({None: "not run", False: "FAILED"}[ok])


def test_a_damaged_bundle_runs_no_program(runtime, program):
    runtime("raise SystemExit(0)")
    (program / "labels.txt").write_text("")
    assert [check.name for check in verify_bundle(program).checks] == ["files"]


def test_without_a_program_nothing_is_asked(bundle):
    assert [check.name for check in verify_bundle(bundle).checks][-1] == "calibration"


PREPROCESS = Preprocess(image_size=(4, 4))


def linear_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()


def export_linear(folder: Path) -> dict:
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    batches = [(images[start : start + 4], None, [f"{start}.jpg"] * len(images[start : start + 4])) for start in (0, 4)]
    return export_bundle(
        linear_model(),
        folder,
        classes=("a", "b", "c"),
        preprocess=PREPROCESS,
        batches=batches,
        calibration={"temperature": 1.7},
        format="executorch",
    )


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    if not find_spec("executorch"):
        pytest.skip("needs executorch, which is not here: pip install '.[executorch]'")
    folder = tmp_path_factory.mktemp("program") / "bundle"
    return folder, export_linear(folder)


def test_the_program_is_proven_like_the_onnx_file(shipped):
    folder, parities = shipped
    assert list(parities) == ["onnx", "executorch"]
    assert parities["executorch"].num_images == parities["onnx"].num_images == 8
    assert parities["executorch"].max_logit_difference < 1e-5  # Seen: 2e-7.
    told = json.loads((folder / "bundle.json").read_text())["executorch"]
    assert (told["file"], told["method"], told["batch"]) == ("model.pte", "forward", 1)
    assert told["runtime"].startswith("executorch 1.")
    assert told["parity"]["num_images"] == 8
    assert {path.name for path in folder.iterdir()} >= {"model.onnx", "model.pte", "check.py", "check_program.py"}


def test_the_bundle_passes_its_checks_with_and_without_vitrail(shipped):
    folder, _ = shipped
    result = verify_bundle(folder)
    assert result.ok
    assert (result.checks[-1].name, result.checks[-1].ok) == ("executorch", True)
    done = subprocess.run(
        [sys.executable, "-I", "-B", folder / "check_program.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("largest logit difference of 8 images")


def test_the_readme_tells_how_the_program_is_called(shipped, monkeypatch):
    folder, _ = shipped
    text = bundle_readme(json.loads((folder / "bundle.json").read_text()))
    assert text == (folder / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[1]
    monkeypatch.chdir(folder)
    with np.load(folder / "golden.npz", allow_pickle=False) as golden:
        names = {"images": golden["images"][:1]}
        exec(code, names)
        np.testing.assert_allclose(names["logits"].numpy(), golden["logits"][:1], atol=1e-5)


def test_another_program_in_its_place_is_noticed(shipped, tmp_path, sign):
    folder, _ = shipped
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    content = (copy / "model.pte").read_bytes()
    place = content.find(linear_model()[1].bias.detach().numpy().tobytes())
    assert place > 0
    changed = linear_model()[1].bias.detach().numpy() + np.float32(0.1)
    (copy / "model.pte").write_bytes(content[:place] + changed.tobytes() + content[place + 12 :])
    sign(copy)
    last = verify_bundle(copy).checks[-1]
    assert (last.name, last.ok) == ("executorch", False)
    assert "other answers than at its export: largest logit difference of 8 images 0.1 " in last.detail


@needs_executorch
def test_a_program_with_other_answers_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    def other(model, path, **options):
        export(nn.Sequential(model, nn.ReLU()), path, **options)
        return {}

    export = bundle_module.export_executorch
    monkeypatch.setattr(bundle_module, "export_executorch", other)
    with pytest.raises(ParityError, match=r"exported model\.pte does not answer like the trained one; nothing was"):
        export_linear(tmp_path / "b")
    assert not list(tmp_path.iterdir())
