"""How long a user waits before anything happens: importing vitrail and asking for help, against importing torch.

    python benchmarks/start_time.py [--rounds 15]

Wall time of whole processes, taking turns; the first round, which also compiles byte code, is not counted. `python`
alone is what every other row contains.
"""

import argparse
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from alternate import save

VITRAIL = str(Path(sysconfig.get_path("scripts")) / "vitrail")
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import vitrail": [sys.executable, "-c", "import vitrail"],
    "vitrail --help": [VITRAIL, "--help"],
    "vitrail train --help": [VITRAIL, "train", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def wall_time_s(command: list[str]) -> float:
    """Return how long a process lives."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every command, round by round, in an order that turns."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    names = list(COMMANDS)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            elapsed_s = wall_time_s(COMMANDS[name])
            if number:
                seconds[name].append(elapsed_s)
    return seconds


def table(seconds: dict[str, list[float]]) -> str:
    """Return a Markdown table."""
    lines = ["| command | wall time in ms, median [lowest, highest] |", "|---|---|"]
    for name, values in seconds.items():
        middle, low, high = (1e3 * each for each in (statistics.median(values), min(values), max(values)))
        lines.append(f"| `{name}` | {middle:.0f} [{low:.0f}, {high:.0f}] |")
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    seconds = measure(options.rounds)
    print(table(seconds))
    save(options.out, "start_time", {"seconds": seconds})


if __name__ == "__main__":
    main()
