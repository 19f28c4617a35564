"""Repeat the proof of a bundle's ExecuTorch program: ``python check_program.py [BUNDLE]``.

Needs executorch, which brings torch and numpy. A copy of this file travels in every bundle that has a program, beside
check.py, which needs less and comes first: it shows that the files are whole and of the sizes that they promise.

Prints one line. Exit code: 0 if the program gives the answers of the trained model, 1 if it does not, 3 if executorch
does not import here. ExecuTorch itself may end the process where a program is damaged.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

PROGRAM: Final = "model.pte"
METHOD: Final = "forward"
"""Name of the program's one method."""
PROBABILITY_LIMIT: Final = 1e-5
"""Probabilities are at most 1 and made by one softmax or sigmoid in float32 (2^-24 = 6e-8 per operation)."""
NOT_INSTALLED: Final = 3
"""Exit code where there is no ExecuTorch."""

Floats = NDArray[np.float32]


class Program:
    """A ``.pte`` file, open in ExecuTorch.

    Args:
        path: the file.

    Raises:
        ImportError: if executorch is not installed.
        RuntimeError: if it cannot open the file.
    """

    def __init__(self, path: Path) -> None:
        from executorch.runtime import Runtime

        self._program = Runtime.get().load_program(path)  # which its method needs as long as it lives
        self._method: Any = self._program.load_method(METHOD)

    def answers(self, pixels: NDArray[Any]) -> tuple[Floats, Floats]:
        """Return logits and probabilities ``(B, C)`` of images ``(B, H, W, channels)``, run one by one."""
        import torch

        # Copies, because ExecuTorch writes the next answers over the last.
        pairs = [
            [output.clone().numpy() for output in self._method.execute([torch.tensor(pixels[index : index + 1])])]
            for index in range(len(pixels))
        ]
        logits, probabilities = (np.concatenate(outputs) for outputs in zip(*pairs, strict=True))
        return logits, probabilities

    def logits(self, pixels: NDArray[Any]) -> Floats:
        """Return logits ``(B, C)`` of images ``(B, H, W, channels)``."""
        return self.answers(pixels)[0]


def check_program(folder: Path) -> tuple[bool, str]:
    """Run the golden images and return whether the answers are those of the trained model, and what was found."""
    told = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    limit, temperature = told["verification"]["logit_limit"], told["calibration"]["temperature"]
    with np.load(folder / "golden.npz", allow_pickle=False) as golden:
        images, expected = golden["images"], golden["logits"]
    logits, probabilities = Program(folder / PROGRAM).answers(images)
    if not logits.shape == probabilities.shape == expected.shape:
        return False, f"It gives logits of shape {logits.shape}; the trained model gave {expected.shape}."
    gap = float(np.abs(logits - expected).max())
    finding = f"largest logit difference of {len(images)} images {gap:.2g} (limit {limit:.2g})"
    if not gap <= limit:  # nor where it is not a number
        return False, f"The program gives other answers than at its export: {finding}."
    gap = float(np.abs(probabilities - _probabilities(logits.astype(np.float64) / temperature, told["task"])).max())
    if not gap <= PROBABILITY_LIMIT:
        return False, f"Its probabilities are not those of its logits: off by {gap:.2g}."
    return True, finding


def _probabilities(scaled: NDArray[np.float64], task: str) -> NDArray[np.float64]:
    if task == "multilabel":
        return np.asarray(0.5 + 0.5 * np.tanh(scaled / 2))  # the sigmoid, where exp could overflow
    shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def main(arguments: list[str]) -> int:
    """Check the bundle named in ``arguments``, or the one in which this file lies, and tell what was found."""
    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write("usage: python check_program.py [BUNDLE]\n")
        return 0 if len(arguments) == 1 else 2
    try:
        ok, finding = check_program(Path(arguments[0]) if arguments else Path(__file__).parent)
    except ImportError as error:
        sys.stdout.write(f"{PROGRAM} needs executorch, which does not import here ({error}).\n")
        return NOT_INSTALLED
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        ok, finding = False, f"{PROGRAM} cannot be checked: {type(error).__name__} {error}".replace("\n", " ")[:300]
    sys.stdout.write(f"{finding}\n")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
