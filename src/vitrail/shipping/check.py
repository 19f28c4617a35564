"""Repeat the proof of a bundle on the machine where it will run: ``python check.py [BUNDLE]``.

Needs numpy and onnxruntime and nothing else; a copy of this file travels in every bundle. Nothing in the bundle is
executed or unpickled, no path is followed out of it, and its sizes are checked before its arrays are read. The
checksums show damage; they are not a signature, so they do not show who made the bundle.

Exit code: 0 if every check passed, 1 if one failed.
"""

import hashlib
import json
import math
import mmap
import re
import sys
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

FORMAT: Final = 1
CHECKSUMS: Final = "SHA256SUMS"
REQUIRED: Final = ("bundle.json", "golden.npz", "labels.txt", "model.onnx")
MAX_TEXT_BYTES: Final = 16 * 2**20
MAX_GOLDEN_BYTES: Final = 256 * 2**20
PROBABILITY_LIMIT: Final = 1e-5
"""Probabilities are at most 1 and made by one softmax or sigmoid in float32 (2^-24 = 6e-8 per operation)."""

_ONNX_TYPES: Final = {"uint8": "tensor(uint8)", "uint16": "tensor(uint16)", "float32": "tensor(float)"}
_FUNCTIONS: Final = {"classification": "softmax", "multilabel": "sigmoid"}

Floats = NDArray[np.float32]


class Check(NamedTuple):
    """One question that was put to the bundle."""

    name: str
    ok: bool | None
    """Whether it passed; None where it could not be asked on this machine."""
    detail: str


@dataclass
class CheckResult:
    """What was checked, in order. The first failed check is the last: what follows would build on it."""

    folder: Path
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.ok is not False for check in self.checks)

    def lines(self) -> list[str]:
        """Return one line of plain text per check, and one for the whole."""
        width = max(len(check.name) for check in self.checks)
        words = {True: "ok", False: "FAILED", None: "not run"}
        lines = [f"{words[each.ok]:<7}  {each.name:<{width}}  {each.detail}" for each in self.checks]
        end = "gives the answers it was made with." if self.ok else "is not what was exported: do not use it."
        return [*lines, f"{self.folder} {end}"]


class BrokenBundleError(Exception):
    """A check failed; the message says why in one sentence."""


@dataclass(frozen=True)
class Description:
    """The parts of bundle.json that the checks need, with their types made sure of."""

    task: str
    classes: list[str]
    preprocess: dict[str, Any]
    temperature: float
    thresholds: list[float]
    """Of a multilabel task alone: the probability of each class from which its label is given."""
    size: list[int]
    dtype: str
    """Of pixels of this size: height, width and channels."""
    num_golden: int
    logit_limit: float


class Proof:
    """The checks of one bundle, each a method that returns its finding; they build on each other in their order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> str:
        """Every file is there, none is more, and each is as it was written."""
        return _check_files(self.folder)

    def description(self) -> str:
        """bundle.json can be read and says what the other checks need."""
        self.described = _read_description(self.folder)
        described, (height, width, _) = self.described, self.described.size
        return f"{described.task} of {len(described.classes)} classes, {height} x {width} pixels"

    def labels(self) -> str:
        """labels.txt tells the same classes."""
        if _read_text(self.folder / "labels.txt") != "".join(f"{name}\n" for name in self.described.classes):
            raise BrokenBundleError("labels.txt does not hold the classes of bundle.json, one per line.")
        return "labels.txt holds the classes of bundle.json"

    def model(self) -> str:
        """The model opens in onnxruntime."""
        self.session = _open_model(self.folder / "model.onnx")
        return f"opens in onnxruntime {onnxruntime.__version__}"

    def interface(self) -> str:
        """It takes and gives what is declared."""
        return _check_interface(self.session, self.described)

    def metadata(self) -> str:
        """It carries the same labels and preprocessing."""
        return _check_metadata(self.session, self.described)

    def golden(self) -> str:
        """It gives the answers that PyTorch gave to the golden images."""
        self.images, expected = _read_golden(self.folder / "golden.npz", self.described)
        self.logits, self.probabilities = _run(self.session, self.images)
        return _check_golden(self.logits, expected, self.described)

    def batch(self) -> str:
        """It gives the same answer to an image alone and among others."""
        return _check_batch(self.session, self.images, self.logits, self.described)

    def calibration(self) -> str:
        """Its probabilities are the softmax, or sigmoids, of its logits at the declared temperature."""
        return _check_probabilities(self.logits, self.probabilities, self.described)


def check_bundle(folder: str | Path) -> CheckResult:
    """Check a bundle and return what was found; never raises for a bundle that is broken.

    Args:
        folder: what `vitrail export` wrote.
    """
    proof = Proof(Path(folder))
    result = CheckResult(proof.folder)
    before_running = (proof.files, proof.description, proof.labels, proof.model, proof.interface, proof.metadata)
    for step in (*before_running, proof.golden, proof.batch, proof.calibration):
        try:
            result.checks.append(Check(step.__name__, True, step()))
        except (BrokenBundleError, OSError, MemoryError, UnicodeDecodeError) as error:
            result.checks.append(Check(step.__name__, False, _first_line(error)))
            break
    return result


def _check_files(folder: Path) -> str:
    if not folder.is_dir():
        raise BrokenBundleError(f"{folder} is not a folder; give the folder that vitrail export wrote.")
    sums = _read_checksums(folder)
    present = {path.name for path in folder.iterdir()} - {CHECKSUMS}
    if missing := sorted({*REQUIRED, *sums} - present):
        raise BrokenBundleError(f"Missing: {', '.join(missing)}.")
    if extra := sorted(present - set(sums)):
        raise BrokenBundleError(f"Not part of the bundle: {', '.join(map(ascii, extra))}.")
    if odd := sorted(name for name in sums if not _is_plain_file(folder / name)):
        raise BrokenBundleError(f"Not a plain file: {', '.join(odd)}.")
    if altered := sorted(name for name, checksum in sums.items() if _sha256(folder / name) != checksum):
        raise BrokenBundleError(f"Altered since the export: {', '.join(altered)}.")
    return f"{len(sums)} files have their checksums"


def _read_checksums(folder: Path) -> dict[str, str]:
    sums = {}
    for line in _read_text(folder / CHECKSUMS).splitlines():
        # A plain name only: no slash of either kind, no drive, not "..": nothing outside of the folder is ever opened.
        match = re.fullmatch(r"([0-9a-f]{64})  (\w[\w.-]*)", line, re.ASCII)
        if match is None:
            raise BrokenBundleError(
                f"{CHECKSUMS} has a line that is not a checksum and a plain file name: {line[:100]!a}."
            )
        sums[match[2]] = match[1]
    return sums


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_text(path: Path) -> str:
    if not _is_plain_file(path):
        raise BrokenBundleError(f"{path.name} is missing or not a plain file.")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise BrokenBundleError(f"{path.name} has {path.stat().st_size} bytes; at most {MAX_TEXT_BYTES} are read.")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise BrokenBundleError(f"{path.name} is not UTF-8 text.") from None


def _read_description(folder: Path) -> Description:
    try:
        data = json.loads(_read_text(folder / "bundle.json"))
    except (ValueError, RecursionError) as error:
        raise BrokenBundleError(f"bundle.json is not JSON: {error}.") from None
    if isinstance(data, dict) and data.get("format") != FORMAT:
        raise BrokenBundleError(f"bundle.json has format {data.get('format')!a}; this check knows format {FORMAT}.")
    try:
        description = _parse_description(data)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BrokenBundleError(f"bundle.json lacks or misstates something: {type(error).__name__} {error}.") from None
    if not _is_sensible(description):
        raise BrokenBundleError("bundle.json has a task, type, temperature, limit, size or list that no export writes.")
    return description


def _parse_description(data: dict[str, Any]) -> Description:
    _, height, width, channels = data["input"]["shape"]
    calibration = data["calibration"]
    return Description(
        task=str(data["task"]),
        classes=list(data["classes"]),
        preprocess=dict(data["preprocess"]),
        temperature=float(calibration["temperature"]),
        thresholds=[float(each) for each in calibration.get("thresholds", [])],
        size=[int(height), int(width), int(channels)],
        dtype=str(data["input"]["dtype"]),
        num_golden=int(data["golden"]["num_images"]),
        logit_limit=float(data["verification"]["logit_limit"]),
    )


def _is_sensible(description: Description) -> bool:
    return (
        bool(description.classes)
        and description.task in _FUNCTIONS
        and description.dtype in _ONNX_TYPES
        and len(description.thresholds) == (len(description.classes) if description.task == "multilabel" else 0)
        and all(0 <= each <= 1 for each in description.thresholds)
        and all(isinstance(name, str) for name in description.classes)
        and all(math.isfinite(value) and value > 0 for value in (description.temperature, description.logit_limit))
        and min(*description.size, description.num_golden) > 0
    )


def _open_model(path: Path) -> Any:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise BrokenBundleError("model.onnx is empty.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # How ONNX spells "this weight lies in another file": its key in wire format (field 1, 8 bytes).
            if content.find(b"\x0a\x08location") >= 0:
                raise BrokenBundleError("model.onnx keeps weights in another file; a bundle's model is one file.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception
    try:
        # Its fallback would print a banner about the failure and try the same again.
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no base of their own
        raise BrokenBundleError(f"onnxruntime cannot open model.onnx: {_first_line(error)}") from None


def _check_interface(session: Any, description: Description) -> str:
    output = ("tensor(float)", [len(description.classes)])
    expected = {"images": (_ONNX_TYPES[description.dtype], description.size), "logits": output, "probabilities": output}
    # The first axis is the batch and must be free: onnxruntime gives its name, or the number it is fixed to.
    found = {item.name: (item.type, item.shape[1:]) for item in (*session.get_inputs(), *session.get_outputs())}
    if found != expected:
        raise BrokenBundleError(f"The model takes and gives {found!a}; bundle.json promises {expected!a}.")
    if isinstance(session.get_inputs()[0].shape[0], int):
        raise BrokenBundleError(f"The model takes {session.get_inputs()[0].shape[0]} images at a time, not any number.")
    return "images in, logits and probabilities out, as declared"


def _check_metadata(session: Any, description: Description) -> str:
    properties = session.get_modelmeta().custom_metadata_map
    several = {"thresholds": description.thresholds} if description.thresholds else {}
    expected = {"labels": description.classes, "preprocess": description.preprocess, **several}
    for key, value in expected.items():
        try:
            inside = json.loads(properties.get(key, ""))
        except (ValueError, RecursionError):
            raise BrokenBundleError(f"The model carries no readable {key}.") from None
        if inside != value:
            raise BrokenBundleError(f"The {key} inside the model are not those of bundle.json.")
    return f"{', '.join(expected)} inside the model are those of bundle.json"


def _read_golden(path: Path, description: Description) -> tuple[NDArray[Any], Floats]:
    expected: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "images.npy": ((description.num_golden, *description.size), np.dtype(description.dtype)),
        "logits.npy": ((description.num_golden, len(description.classes)), np.dtype(np.float32)),
    }
    try:
        with zipfile.ZipFile(path) as archive:
            if sorted(archive.namelist()) != sorted(expected):
                raise BrokenBundleError(f"golden.npz holds {archive.namelist()[:5]}; expected {list(expected)}.")
            if sum(item.file_size for item in archive.infolist()) > MAX_GOLDEN_BYTES:
                raise BrokenBundleError(f"golden.npz unpacks to more than {MAX_GOLDEN_BYTES} bytes and was not read.")
            for name, (dims, dtype) in expected.items():
                # Before anything is allocated: numpy believes the header, and a header can promise terabytes.
                with archive.open(name) as member:
                    if _array_header(member) != (dims, dtype):
                        raise BrokenBundleError(f"golden.npz has an array {name} that is not {dtype} of shape {dims}.")
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["images"], arrays["logits"]
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError) as error:
        raise BrokenBundleError(f"golden.npz cannot be read: {_first_line(error)}") from None


def _array_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    if np.lib.format.read_magic(member) != (1, 0):
        raise BrokenBundleError("golden.npz has an array of another format than numpy's 1.0.")
    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    return shape, dtype


def _run(session: Any, images: NDArray[Any]) -> tuple[Floats, Floats]:
    try:
        logits, probabilities = session.run(["logits", "probabilities"], {"images": images})
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no base of their own
        raise BrokenBundleError(f"The model fails on {len(images)} images: {_first_line(error)}") from None
    return logits, probabilities


def _check_golden(logits: Floats, expected: Floats, description: Description) -> str:
    gap = _gap(logits, expected)
    given, wanted = (_read_out(each, description)[1] for each in (logits, expected))
    same = int((given == wanted).all(axis=1).sum()) if given.shape == wanted.shape else 0
    finding = (
        f"{same} of {len(expected)} images get their label{'s' if description.thresholds else ''}, "
        f"largest logit difference {gap:.2g} (limit {description.logit_limit:.2g})"
    )
    # Within the limit a label changes only where two logits tie within twice the limit: no failure of its own.
    if not gap <= description.logit_limit:
        raise BrokenBundleError(f"The model gives other answers than at its export: {finding}.")
    return finding


def _check_batch(session: Any, images: NDArray[Any], logits: Floats, description: Description) -> str:
    alone = np.concatenate([_run(session, images[index : index + 1])[0] for index in range(len(images))])
    gap = _gap(alone, logits)
    if not gap <= description.logit_limit:
        raise BrokenBundleError(f"An image alone and in a batch of {len(images)} differ by {gap:.2g}.")
    return f"one at a time or {len(images)} at once: largest logit difference {gap:.2g}"


def _check_probabilities(logits: Floats, probabilities: Floats, description: Description) -> str:
    gap = _gap(probabilities, _read_out(logits, description)[0])
    function = f"the {_FUNCTIONS[description.task]} of logits / {description.temperature:.4g}"
    if not gap <= PROBABILITY_LIMIT:
        raise BrokenBundleError(f"They are not {function}: off by {gap:.2g}.")
    return f"are {function}"


def _read_out(logits: Floats, description: Description) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return probabilities (N, C), and which labels are given (N, C)."""
    scaled = logits.astype(np.float64) / description.temperature
    if description.thresholds:
        shares = 0.5 + 0.5 * np.tanh(scaled / 2)  # the sigmoid, where exp could overflow
        return shares, shares >= np.array(description.thresholds)
    shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True), np.eye(shares.shape[1], dtype=bool)[logits.argmax(axis=1)]


def _gap(values: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest absolute difference; not a number where the shapes differ or a value is not finite."""
    if values.shape != expected.shape:
        return math.nan
    return float(np.abs(values.astype(np.float64) - expected).max())


def _first_line(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):  # onnxruntime decodes the names and metadata of the model
        return "The model has names or metadata that are not UTF-8 text."
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def main(arguments: list[str]) -> int:
    """Check the bundle named in ``arguments``, or the one in which this file lies, and tell what was found."""
    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write("usage: python check.py [BUNDLE]\n")
        return 0 if len(arguments) == 1 else 2
    result = check_bundle(arguments[0] if arguments else Path(__file__).parent)
    sys.stdout.write("\n".join(result.lines()) + "\n")
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
