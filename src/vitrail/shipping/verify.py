"""All checks of a bundle: those of check.py, and of its ExecuTorch program where that can run. Loads no torch."""

import subprocess
import sys
from pathlib import Path
from typing import Final

from vitrail.shipping import check_program
from vitrail.shipping.check import Check, CheckResult, check_bundle

RUN_SECONDS: Final = 600
"""Longest time that the golden images may take in ExecuTorch."""


def verify_bundle(folder: Path) -> CheckResult:
    """Check a bundle and return what was found; never raises for a bundle that is broken.

    Args:
        folder: what `vitrail export` wrote.
    """
    result = check_bundle(folder)
    if result.ok and (folder / check_program.PROGRAM).is_file():
        result.checks.append(_ask_program(folder))
    return result


def _ask_program(folder: Path) -> Check:
    """Run vitrail's own check_program.py in another process, which ExecuTorch may end over a damaged program."""
    # -P: the modules beside that file are not taken for others of their names.
    command = [sys.executable, "-P", check_program.__file__, str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=RUN_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Check("executorch", False, f"{check_program.PROGRAM} did not answer within {RUN_SECONDS} s.")
    finding = (done.stdout.strip().splitlines() or [f"ExecuTorch ended with exit code {done.returncode}."])[-1]
    return Check("executorch", {0: True, check_program.NOT_INSTALLED: None}.get(done.returncode, False), finding)
