"""The pages tell the truth: their examples run, their commands parse, their links lead somewhere, their tables are new.

    python tests/architecture/test_docs.py        writes the generated parts of docs/ anew

Conventions of the pages:

* A ``python`` block runs, by itself, in a new empty folder. A line before it says otherwise: ``<!-- makes: run -->`` is
  before the one block that makes a small run and its bundle (`workspace`), ``<!-- needs: run -->`` before one that runs
  beside a copy of these, ``<!-- skip: REASON -->`` before one that is left out.
* A line of a ``sh`` block that calls vitrail is parsed and not run, and so is inline code such as
  ``vitrail check BUNDLE``.
* What stands between ``<!-- generated: NAME ARGUMENT -->`` and ``<!-- end -->`` is the result of ``NAME(ARGUMENT)``,
  a function of this file.
"""

import ast
import dataclasses
import importlib
import inspect
import re
import shlex
import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from PIL import Image

import vitrail
from vitrail import errors
from vitrail.cli import VERBS, _parse
from vitrail.errors import VitrailError

ROOT = Path(__file__).parents[2]
SOURCE = Path(vitrail.__file__).parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
INTERFACE = ROOT / "docs" / "interface.md"

GENERATED = re.compile(r"(<!-- generated: (\w+) ?(\S*) -->\n).*?(<!-- end -->)", re.DOTALL)
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>makes|needs|skip): (?P<why>.+?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


# What is made from the code


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in [header, *rows]]
    return "".join([lines[0], f"|{'---|' * len(header)}\n", *lines[1:]])


def prose(text: str) -> str:
    """Turn the marks of a docstring into those of Markdown, on one line."""
    return " ".join(text.replace("``", "`").split())


def definition(thing: Any) -> Any:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    return node


def attributes(kind: type) -> dict[str, tuple[str, str]]:
    """The annotation and the docstring of each public field and property of a class, by its name."""
    found: dict[str, tuple[str, str]] = {}
    for parent in reversed(kind.__mro__[:-1]):
        body = definition(parent).body
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign):
                told = (
                    after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
                )
                found[ast.unparse(node.target)] = (ast.unparse(node.annotation), prose(told))
            elif isinstance(node, ast.FunctionDef) and any(ast.unparse(d) == "property" for d in node.decorator_list):
                found[node.name] = (ast.unparse(node.returns), prose(ast.get_docstring(node)))
    return found


def default(field: dataclasses.Field) -> str:
    if isinstance(field.default, tuple):
        return " ".join(map(str, field.default))
    return "" if field.default in {None, dataclasses.MISSING} else str(field.default)


def takes(hint: Any) -> str:
    is_union = get_origin(hint) in {Union, UnionType}
    kinds = [kind for kind in (get_args(hint) if is_union else [hint]) if kind is not NoneType]
    if get_origin(kinds[0]) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kinds[0]))
    if get_origin(kinds[0]) is tuple:
        several = {int: "whole numbers", str: "texts"}.get(get_args(kinds[0])[0])
        return f"any number of {several}" if several else f"one or more of {takes(get_args(kinds[0])[0])}"
    return {bool: "", int: "whole number", float: "number", str: "text"}.get(kinds[0], "any number of texts")


def flags(verb: str) -> str:
    kind = VERBS[verb].config
    told, hints = attributes(kind), get_type_hints(kind)
    rows = []
    for field in dataclasses.fields(kind):
        words = field.name.replace("_", "-")
        flag, value = f"`--{words}`", default(field)
        if field.default is dataclasses.MISSING:
            flag = f"`{field.name.upper()}`"
        elif takes(hints[field.name]) == "":
            flag, value = f"`--{words}`, `--no-{words}`", {"True": "on", "False": "off"}.get(value, value)
        rows.append([flag, takes(hints[field.name]), value, told[field.name][1]])
    rows.sort(key=lambda row: row[0].startswith("`--"))  # what has no flag comes first, as it is typed
    return table(["flag", "takes", "default", "what it does"], rows)


def fields(place: str) -> str:
    """The attributes of the class at a place such as vitrail.config:Preprocess."""
    module, _, name = place.partition(":")
    kind = getattr(importlib.import_module(module), name)
    defaults = {field.name: default(field) for field in dataclasses.fields(kind)}
    rows = [[f"`{name}`", f"`{hint}`", defaults.get(name, ""), told] for name, (hint, told) in attributes(kind).items()]
    if any(row[2] for row in rows):
        return table(["name", "type", "default", "what it is"], rows)
    return table(["name", "type", "what it is"], [[row[0], row[1], row[3]] for row in rows])


def function(name: str) -> str:
    """The signature and the docstring of a public function."""
    node = definition(getattr(vitrail, name))
    call = f"vitrail.{name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"
    call = textwrap.fill(call, 110, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    description, *sections = re.split(r"^(Args|Returns|Raises):\n", ast.get_docstring(node), flags=re.MULTILINE)
    parts = [f"```text\n{call}\n```", *map(prose, description.strip().split("\n\n"))]
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        if title == "Returns":
            parts.append(f"Returns: {prose(body)}")
            continue
        items = re.findall(r"^    (\S[^:\n]*): (.*(?:\n {8}.*)*)", body, re.MULTILINE)
        parts += [f"{title}:", "\n".join(f"- `{name}`: {prose(text)}" for name, text in items)]
    return "\n\n".join(parts) + "\n"


def error_classes(_: str) -> str:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, VitrailError)]
    rows = [[f"`{kind.__name__}`", str(kind.exit_code), prose(inspect.getdoc(kind))] for kind in kinds]
    return table(["error", "exit code", "when"], rows)


def vit_sizes(_: str) -> str:
    from vitrail.models import MODELS
    from vitrail.models.vit import SHAPES

    rows = [
        [
            f"`vit_{size}_patch*`",
            ", ".join(name.rpartition("patch")[2] for name in MODELS if name.startswith(f"vit_{size}_")),
            *map(str, dataclasses.astuple(shape)),
        ]
        for size, shape in SHAPES.items()
    ]
    return table(["name", "patch sizes", "width D", "blocks", "heads", "hidden layer, in D"], rows)


def policies(_: str) -> str:
    from vitrail.data.policy import POLICIES, AugmentPolicy

    def cell(value: Any) -> str:
        if isinstance(value, bool) or value is None:
            return "yes" if value else "no"
        return " to ".join(f"{each:.3g}" for each in value) if isinstance(value, tuple) else f"{value:.3g}"

    rows = [
        [f"`{name}`", *(cell(getattr(policy, name)) for policy in POLICIES.values()), told]
        for name, (_, told) in attributes(AugmentPolicy).items()
        if name in {field.name for field in dataclasses.fields(AugmentPolicy)}
    ]
    return table(["", *POLICIES, "what it is"], rows)


def optimizers(_: str) -> str:
    from vitrail.optim import OPTIMIZERS

    rows = [
        [
            f"`{name}`",
            f"{entry.lr:g} * (batch / {entry.reference_batch}) ^ {entry.batch_exponent:g}"
            + (f" * ({entry.reference_width} / width) ^ 0.5" if entry.reference_width else ""),
            f"{entry.weight_decay:g}",
            ", ".join(f"{key} {value}" for key, value in entry.defaults.items()),
        ]
        for name, entry in OPTIMIZERS.items()
    ]
    return table(["name", "default `--lr`", "default `--weight-decay`", "other options"], rows)


GENERATORS: dict[str, Callable[[str], str]] = {
    made.__name__: made for made in (flags, fields, function, error_classes, vit_sizes, policies, optimizers)
}


def up_to_date(text: str) -> str:
    return GENERATED.sub(lambda found: f"{found[1]}{GENERATORS[found[2]](found[3])}{found[4]}", text)


# What is found in the pages


class Block(NamedTuple):
    page: Path
    line: int
    mark: str | None
    why: str | None
    language: str
    code: str

    def run(self) -> None:
        # Line numbers of an error are those of the page.
        exec(compile("\n" * self.line + self.code, self.page, "exec"), {"__name__": "__main__"})


def blocks(language: str) -> list[Block]:
    return [
        Block(page, text.count("\n", 0, found.start("code")), **found.groupdict())
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for found in BLOCK.finditer(text)
        if found["language"] == language
    ]


def commands() -> dict[str, list[str]]:
    """The words after `vitrail` of every command in the pages, by where it stands."""
    lines = [
        (f"{block.page.name}:{block.line + number}", line)
        for block in blocks("sh")
        for number, line in enumerate(block.code.replace("\\\n", " ").splitlines(), start=1)
    ]
    for page in PAGES:
        inline = re.findall(r"`(vitrail [a-z]+ [^`]+)`", BLOCK.sub("", page.read_text(encoding="utf-8")))
        lines += [(f"{page.name}, inline: {line}", line) for line in inline]
    found = {}
    for place, line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for words in split_at(list(lexer), {"&&", "|", ";", ">"}):
            if words[0] == "vitrail" and "--help" not in words:
                found[place] = words[1:]
    return found


def split_at(words: list[str], marks: set[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in [*words, ";"]:
        if word not in marks:
            part.append(word)
        elif part:
            yield part
            part = []


def section(page: Path, heading: str) -> str:
    text = page.read_text(encoding="utf-8")
    assert f"\n{heading}\n" in text, f"{page.name} has no heading {heading}"
    return re.split(r"\n#+ ", text.split(f"\n{heading}\n")[1])[0]


def cells(text: str) -> list[list[str]]:
    """The rows of the table in a text, the header first."""
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [rows[0], *rows[2:]]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# The tests


@pytest.fixture(scope="module", autouse=True)
def settings_of_the_process() -> Iterator[None]:
    """Keep the choice of fp32's matrix products, which holds for a whole process, from the tests that come after."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitrail.runtime.precision._use_onednn_for_fp32", lambda: False)
        yield


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/ (three classes), pictures/ without labels, and in runs/ what the marked example makes."""
    folder = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    for label, colour in {"daisy": (230, 220, 90), "rose": (200, 40, 60), "tulip": (150, 60, 200)}.items():
        for number in range(8):
            pixels = np.clip(rng.normal(colour, 25, (40, 48, 3)), 0, 255).astype(np.uint8)
            place = folder / "photos" / label if number else folder / "pictures"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{label}-{number}.png")
    (example,) = [block for block in blocks("python") if block.mark == "makes"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        example.run()
    return folder


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: f"{block.page.name}:{block.line}")
def test_every_example_runs(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if block.mark == "skip":
        pytest.skip(block.why)
    monkeypatch.chdir(tmp_path)
    if block.mark is not None:
        assert block.why == "run", f"{block.page.name}:{block.line} {block.mark} {block.why!r}, which is not known"
        workspace = request.getfixturevalue("workspace")
    if block.mark == "needs":
        shutil.copytree(workspace, tmp_path, ignore=shutil.ignore_patterns("state.*"), dirs_exist_ok=True)
    if block.mark != "makes":
        block.run()


def test_the_pages_have_examples() -> None:
    assert len([block for block in blocks("python") if block.mark != "skip"]) >= 15


@pytest.mark.parametrize("words", [pytest.param(words, id=place) for place, words in commands().items()])
def test_every_command_is_one(words: list[str]) -> None:
    assert words[0] in VERBS, f"there is no verb {words[0]}"
    _parse(words[0], VERBS[words[0]], words[1:])


def test_the_pages_have_commands_of_every_verb() -> None:
    assert {words[0] for words in commands().values()} == set(VERBS)


def test_every_link_leads_somewhere() -> None:
    links = [
        (page, link)
        for page in PAGES
        for link in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))
        if not link.startswith(("http:", "https:"))
    ]
    assert len(links) > 20
    broken = []
    for page, link in links:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{page.name}: {link}")
    assert not broken


def test_the_index_leads_to_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert {page.name for page in DOCS} - {"index.md"} <= set(LINK.findall(index))


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == up_to_date(text), "run python tests/architecture/test_docs.py"


def test_the_pages_have_generated_parts_of_every_kind() -> None:
    made = {found[2] for page in DOCS for found in GENERATED.finditer(page.read_text(encoding="utf-8"))}
    assert made == set(GENERATORS)


def test_the_interface_page_has_every_public_name_and_every_verb() -> None:
    text = INTERFACE.read_text(encoding="utf-8")
    made = {(found[2], found[3]) for found in GENERATED.finditer(text)}
    assert {argument for name, argument in made if name == "flags"} == set(VERBS)
    functions = {name for name in vitrail.__all__ if inspect.isfunction(getattr(vitrail, name))}
    assert {argument for name, argument in made if name == "function"} == functions
    assert not [name for name in vitrail.__all__ if not re.search(rf"\bvitrail\.{name}\b", text)]


@pytest.mark.parametrize("verb", VERBS)
def test_the_flags_of_the_interface_page_are_those_of_the_help(verb: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        _parse(verb, VERBS[verb], ["--help"])
    offered = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"`(--[a-z-]+)`", flags(verb))) == offered - {"--help"}


def test_every_file_of_a_run_and_of_a_bundle_is_listed(workspace: Path) -> None:
    header, *files = cells(section(INTERFACE, "### A run"))
    for verb in ("train", "evaluate", "data"):
        listed = {row[0] for row in files if row[header.index(verb)] == "yes"}
        assert listed == {path.name for path in (workspace / "runs" / verb / "photos").iterdir()}, verb
    listed = {row[0] for row in cells(section(INTERFACE, "### A bundle"))[1:]}
    assert listed == {path.name for path in (workspace / "runs" / "export" / "photos").iterdir()}


def test_the_sentences_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    sentences = re.findall(r"^### \.\.\. (.+) \.\.\.$", page, re.MULTILINE)
    assert len(sentences) >= 15
    code = "".join(path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py")))
    assert not [sentence for sentence in sentences if sentence not in code]


if __name__ == "__main__":
    for path in DOCS:
        path.write_text(up_to_date(path.read_text(encoding="utf-8")), encoding="utf-8")
