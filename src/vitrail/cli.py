"""The command line: ``vitrail VERB TARGET --flags``, made from the dataclasses of `vitrail.config`.

Exit codes: 0 done; 1 the work failed (unusable images, a gate not passed); 2 a wrong call; 130 interrupted, with
everything saved that was done.
"""

import dataclasses
import importlib
import io
import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vitrail import config
from vitrail.errors import INTERRUPTED, ConfigError, UnknownNameError, VitrailError, did_you_mean, lookup
from vitrail.version import __version__


@dataclass(frozen=True)
class Verb:
    """One word of the command line."""

    config: type
    """Its knobs."""
    module: str
    """Where ``run(config) -> exit code`` lives; imported only when the verb is used."""
    help: str
    """One line for the list of verbs."""


VERBS: Final = {
    "demo": Verb(config.DemoConfig, "vitrail.verbs.demo", "the whole way on built-in data, in about two minutes"),
    "data": Verb(
        config.AdmitConfig, "vitrail.verbs.admit", "look at a folder of images: classes, splits, broken files"
    ),
    "train": Verb(config.TrainConfig, "vitrail.verbs.train", "train a model on a folder of images and report on it"),
    "evaluate": Verb(config.EvaluateConfig, "vitrail.verbs.evaluate", "accuracy and its relatives, with intervals"),
    "predict": Verb(config.PredictConfig, "vitrail.verbs.predict", "label files, folders and globs"),
    "export": Verb(
        config.ExportConfig, "vitrail.verbs.export", "make a bundle that is proven to give the same answers"
    ),
    "check": Verb(config.CheckConfig, "vitrail.verbs.check", "repeat a bundle's proof on this machine"),
    "bench": Verb(config.BenchConfig, "vitrail.verbs.bench", "measure how fast models are, side by side"),
    "models": Verb(config.ModelsConfig, "vitrail.verbs.models", "list what can be trained, with its cost"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stdout is None:  # closed by the caller, as ``>&-`` in a shell does
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - stays open to the end
    try:
        code = _run(words)
        sys.stdout.flush()  # while somebody listens: at the interpreter's end an error is a page of text
    except VitrailError as error:
        if isinstance(error, UnknownNameError) and words[0] not in VERBS:
            sys.stderr.write(_usage())
        sys.stderr.write(f"vitrail: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("vitrail: interrupted.\n")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as `vitrail models | head` does
        _drop_output()
        return 0
    except OSError as error:  # the system's own, such as a name that is too long, or output to a full disk
        sys.stderr.write(f"vitrail: {error.strerror or error}: {error.filename or 'the output'}.\n")
        if error.filename is None:
            _drop_output()
        return VitrailError.exit_code
    return code


def _run(words: Sequence[str]) -> int:
    if not words or words[0] in {"-h", "--help", "help"}:
        sys.stdout.write(_usage())
        return 0 if words else ConfigError.exit_code
    if words[0] in {"-V", "--version"}:
        sys.stdout.write(f"vitrail {__version__}\n")
        return 0
    # Pillow warns about odd metadata of files that it reads all the same.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    verb = lookup(VERBS, words[0], "verb")
    knobs = _parse(words[0], verb, words[1:])
    return int(importlib.import_module(verb.module).run(knobs))


def _drop_output() -> None:
    """Send what is still to be written nowhere, so that the interpreter's end does not try it again."""
    with suppress(OSError, ValueError):  # an output that is no file has nothing to try
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(name: str, verb: Verb, words: Sequence[str]) -> Any:
    """Return the knobs of a verb.

    Raises:
        ConfigError: for a flag that there is not, one that is missing, or a value that is not allowed.
    """
    import tyro  # 0.2 s that a list of verbs need not pay

    style = tyro.conf.configure(
        tyro.conf.PositionalRequiredArgs,
        tyro.conf.PositionalMetavarFromFieldName,
        tyro.conf.DisallowNone,
        tyro.conf.HelptextFromCommentsOff,
    )
    # tyro would put what the class itself says of a value into a box; so values are checked after it.
    unchecked = type(verb.config.__name__, (verb.config,), {"__post_init__": lambda _: None})
    complaint = io.StringIO()
    parsed: Any
    try:
        with redirect_stderr(complaint):
            parsed, unknown = tyro.cli(
                style(unchecked),
                prog=f"vitrail {name}",
                args=words,
                description=verb.config.__doc__,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:  # help was printed
            raise
        raise ConfigError(f"{_sentence(complaint.getvalue())} `vitrail {name} --help` shows all flags.") from None
    if unknown:
        raise ConfigError(_what_is_unknown(name, verb, unknown))
    return verb.config(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(verb.config)})


def _sentence(box: str) -> str:
    """Return the first paragraph in a box of tyro's, on one line."""
    paragraph = re.split(r"\n\W*[─]{4,}\W*\n", re.sub(r"\A╭.*╮\n", "", box.strip()))[0]
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", paragraph).split()).partition(" Got errors:")[0]
    return words.rstrip(".") + "."


def _what_is_unknown(name: str, verb: Verb, unknown: Sequence[str]) -> str:
    flags = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(verb.config)]
    given = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
    if given is None:
        return f"vitrail {name} does not know what to do with {unknown[0]!r}; `vitrail {name} --help` shows its usage."
    hint = did_you_mean(given, flags)
    return f"vitrail {name} has no flag {given}.{hint} `vitrail {name} --help` shows all flags."


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    return (
        "vitrail: from a folder of images to a verified vision transformer.\n\n"
        "usage: vitrail VERB TARGET [--flags]\n\n"
        f"{lines}\n\n"
        "vitrail VERB --help shows the flags of a verb.\n"
    )
