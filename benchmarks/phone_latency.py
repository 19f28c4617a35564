"""How long does one image take in onnxruntime? Phone-class models at their published sizes, fp32 and int8, in turns.

    python benchmarks/phone_latency.py [--models lucarne_s mocovit_100 ...] [--rounds 15]
    python benchmarks/phone_latency.py --table        prints the tables from what was measured

Each model is folded and exported as `vitrail export` does, then made int8 in the two ways that onnxruntime offers, see
onnx_int8.py; static scales come from random images: the time does not depend on them, the accuracy would, and
int8_accuracy.py measures that. Which calls count, and how models are compared, is told in onnx_latency.py: on several
threads, calls in which another process took a core are thrown away. The machine is best left alone all the same: where
others work, hardly a call of a slow model is undisturbed.

Rounds add up: a run with the same models adds its rounds to those in results/phone_latency.json, so that a busy machine
can be measured in its quiet minutes. A run with other models starts its kinds and threads anew.
"""

import argparse
import json
import logging
import tempfile
from pathlib import Path

import numpy as np
from alternate import save
from onnx_int8 import KINDS, quantize
from onnx_latency import Burst, export, measure, median_ms, ratio, show

DEFAULT = ["lucarne_s", "lucarne_xs", "mocovit_100", "mobilevit_xs", "mobilevit_xxs", "mobilevitv2_050",
           "ghostnet_100", "mobilenetv3_small_100", "mobilenetv3_large_100", "resnet18"]  # fmt: skip
RESULTS = Path(__file__).parent / "results"


def write_graphs(name: str, folder: Path, kinds: list[str]) -> dict[str, Path]:
    """Export one model in each kind."""
    import torch

    from vitrail.models import MODELS, create_model

    size = MODELS[name].image_size
    torch.manual_seed(0)
    plain = folder / f"{name} fp32.onnx"
    export(create_model(name), plain, size)
    paths = {"fp32": plain}
    for kind in kinds:
        if kind != "fp32":
            paths[kind] = folder / f"{name} {kind}.onnx"
            examples = np.random.default_rng(0).integers(0, 256, (4, 1, size, size, 3), dtype=np.uint8)
            quantize(plain, kind, paths[kind], examples)
    return {kind: paths[kind] for kind in kinds}


def table(figures: list[dict], kind: str, threads: int) -> str:
    """Return the figures of one kind and number of threads, with the ratio of each model to the first."""
    found = [each for each in figures if (each["kind"], each["threads"]) == (kind, threads)]
    lines: list[str] = []
    for cores in ("one", "together", "apart"):
        by_model = {each["model"]: in_state(each, cores) for each in found}
        if not any(ms is not None for by_round in by_model.values() for ms in by_round):
            continue
        first = next(iter(by_model))
        where = "1 thread" if cores == "one" else f"{threads} threads, cores {cores}"
        lines += [
            f"\n{kind}, {where}\n",
            f"| model | ms | it / {first}, median [95 %] | rounds |",
            "|---|---|---|---|",
        ]
        for name, by_round in by_model.items():
            ms, versus = median_ms(by_round), "" if name == first else show(ratio(by_round, by_model[first]))
            rounds = sum(each is not None for each in by_round)
            lines.append(f"| {name} | {'' if ms is None else f'{ms:.2f}'} | {versus} | {rounds} of {len(by_round)} |")
    return "\n".join(lines)


def in_state(figure: dict, cores: str) -> list[float | None]:
    """Return the milliseconds of the rounds in which the cores lay so; None for the others."""
    return [ms if where == cores else None for ms, where in zip(figure["ms_by_round"], figure["cores"], strict=True)]


def add_rounds(figures: list[dict], cell: dict, bursts: dict[str, list[Burst]]) -> list[dict]:
    """Return the figures with more rounds of a cell, or with its first ones if other models were measured before."""
    from vitrail.models import MODELS

    inside = {each["model"]: each for each in figures if {key: each[key] for key in cell} == cell}
    before = inside if list(inside) == list(bursts) else {}
    added = []
    for name, rounds in bursts.items():
        earlier = before.get(name, {"ms_by_round": [], "cores": []})
        found = {
            "ms_by_round": [*earlier["ms_by_round"], *(burst.ms for burst in rounds)],
            "cores": [*earlier["cores"], *(burst.cores for burst in rounds)],
        }
        added.append({"model": name, "image_size": MODELS[name].image_size, **cell, **found})
    return [each for each in figures if each not in inside.values()] + added


def read(folder: Path) -> list[dict]:
    """Return the figures that were measured."""
    path = folder / "phone_latency.json"
    return json.loads(path.read_text(encoding="utf-8"))["figures"] if path.exists() else []


def measure_all(options: argparse.Namespace) -> None:
    """Export the models and measure every kind and number of threads that was asked for."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        graphs = {name: write_graphs(name, Path(folder), options.kinds) for name in options.models}
        for threads in options.threads:
            for kind in options.kinds:
                bursts = measure({name: paths[kind] for name, paths in graphs.items()}, threads, options.rounds)
                figures = add_rounds(read(options.out), {"kind": kind, "threads": threads}, bursts)
                save(options.out, "phone_latency", {"figures": figures})
                print(table(figures, kind, threads), flush=True)


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=DEFAULT)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        measure_all(options)
        return
    figures = read(options.out)
    for threads in sorted({each["threads"] for each in figures}):
        for kind in KINDS:
            print(table(figures, kind, threads))


if __name__ == "__main__":
    main()
