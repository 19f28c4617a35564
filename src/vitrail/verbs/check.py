"""`vitrail check`: repeat a bundle's proof on this machine, in onnxruntime, and in ExecuTorch where it is there."""

import sys
from pathlib import Path

from vitrail.config import CheckConfig
from vitrail.shipping.check import CheckResult
from vitrail.shipping.verify import verify_bundle


def check(bundle: str | Path) -> CheckResult:
    """Check a bundle; the result says what was found and never raises for a bundle that is broken.

    Args:
        bundle: a folder that `vitrail.export` wrote.
    """
    return verify_bundle(Path(bundle))


def run(config: CheckConfig) -> int:
    """Serve the command line: 0 for a whole bundle, 1 for any other."""
    result = check(config.bundle)
    sys.stdout.write("\n".join(result.lines()) + "\n")
    return 0 if result.ok else 1
