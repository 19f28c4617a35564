"""How scores are written in a terminal."""

from vitrail.evaluation.intervals import Estimate

CAPTION = "in percent, with 95 % intervals"


def percent(estimate: Estimate) -> str:
    """Return a score in percent, or a dash where it is undefined."""
    return "-" if estimate.value is None else f"{100 * estimate.value:.1f}"


def cell(estimate: Estimate) -> str:
    """Return a score in percent with its interval, or a dash where it is undefined."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
