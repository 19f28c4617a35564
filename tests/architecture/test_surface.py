"""What users hold us to: the public names, the verbs and their flags, the exit codes, the time to import."""

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

import vitrail
from vitrail import config
from vitrail.cli import VERBS, main
from vitrail.errors import ConfigError

SURFACE = Path(__file__).with_name("surface.json")
SOURCE = Path(vitrail.__file__).parent


def surface() -> dict:
    """The promise in plain data: names of Python, verbs, and each verb's flags with their defaults."""
    flags = {}
    for verb, entry in VERBS.items():
        flags[verb] = {
            field.name: "required" if field.default is dataclasses.MISSING else field.default
            for field in dataclasses.fields(entry.config)
        }
    return {"python": sorted(vitrail.__all__), "verbs": flags}


def test_names_verbs_and_flags_are_as_promised() -> None:
    """A change here is a change for users: note it in CHANGELOG.md, then rewrite the file with `python -m tests...`."""
    assert json.loads(json.dumps(surface())) == json.loads(SURFACE.read_text()), (
        "the public surface changed; if that is meant, note it in CHANGELOG.md and run "
        "python tests/architecture/test_surface.py"
    )


def test_every_public_name_loads() -> None:
    for name in vitrail.__all__:
        assert getattr(vitrail, name) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        vitrail.trian  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    [
        "import vitrail",
        "import vitrail.cli",
        "import vitrail.shipping.check",
        "from vitrail.cli import main; main(['--help'])",
    ],
)
def test_light_things_do_not_import_torch(statement: str) -> None:
    code = f"{statement}\nimport sys\nassert not {{'torch', 'onnx', 'sklearn', 'matplotlib'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def config_kinds() -> list[type]:
    kinds = [item for item in vars(config).values() if isinstance(item, type) and dataclasses.is_dataclass(item)]
    assert len(kinds) >= 8
    return kinds


@pytest.mark.parametrize("kind", config_kinds(), ids=lambda kind: kind.__name__)
def test_every_knob_tells_what_it_is(kind: type) -> None:
    tree = ast.parse(Path(sys.modules[kind.__module__].__file__).read_text())
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert told, f"{kind.__name__}.{ast.unparse(node.target)} has no docstring"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["trian"], 2, "Did you mean 'train'"),
        (["train", "x", "--epcohs", "3"], 2, "--epochs"),
        (["train", "x", "--lr", "quick"], 2, "lr"),
        (["train", "x", "--val-fraction", "2"], 2, "val_fraction is 2.0"),
        (["train", "x", "--time-budget", "soon"], 2, "is not a time"),
        (["train", "x", "--augment", "mediun"], 2, "medium"),
        (["predict", "x"], 2, "No images were named"),
        (["check"], 2, "bundle"),
    ],
)
def test_a_wrong_call_ends_with_one_explanation_and_code_2(words: list, code: int, says: str) -> None:
    done = subprocess.run([sys.executable, "-m", "vitrail", *words], capture_output=True, text=True, check=False)
    told = done.stderr + done.stdout
    assert done.returncode == code
    assert told.splitlines()[-1].startswith("vitrail: ")
    assert says.lower() in told.lower()
    assert "Traceback" not in told


def test_help_of_every_verb_works(capsys: pytest.CaptureFixture) -> None:
    for verb in VERBS:
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        assert verb in capsys.readouterr().out


def test_python_and_command_line_refuse_alike() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'epochs'"):
        config.from_options(config.TrainConfig, {"source": "x", "epcohs": 3})


def python_files() -> list[Path]:
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 30
    return files


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_keep_their_size(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, "a file tells one story in at most 400 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            length = node.end_lineno - first.lineno + 1
            assert length <= 50, f"{node.name} has {length} lines; a function fits on a screen (50)"


if __name__ == "__main__":
    SURFACE.write_text(json.dumps(surface(), indent=2) + "\n")
