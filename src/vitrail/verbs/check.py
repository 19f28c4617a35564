"""`vitrail check`: repeat a bundle's proof on this machine, with onnxruntime and numpy alone."""

import sys
from pathlib import Path

from vitrail.config import CheckConfig
from vitrail.shipping.check import CheckResult, check_bundle


def check(bundle: str | Path) -> CheckResult:
    """Check a bundle; the result says what was found and never raises for a bundle that is broken.

    Args:
        bundle: a folder that `vitrail.export` wrote.
    """
    return check_bundle(bundle)


def run(config: CheckConfig) -> int:
    """Serve the command line: 0 for a whole bundle, 1 for any other."""
    result = check(config.bundle)
    sys.stdout.write("\n".join(result.lines()) + "\n")
    return 0 if result.ok else 1
