"""Our models against the same models of timm and transformers: equal answers first, then speed, taking turns.

    python benchmarks/model_speed.py [--models resnet18 mobilevit_xxs ...] [--rounds 4]
    python benchmarks/model_speed.py --table        prints the tables from what was measured

All get the same weights, and how far their logits are apart is kept for every model that both have. Then a training
step (forward, backward, fused AdamW) and inference on one and on several images, in fp32 and in bf16 autocast, each
contestant in its own process on one thread. Contestants:

- vitrail: as its verbs place a model, but in the precision of the row and with its batch norms as they are.
- vitrail, defaults: as `vitrail train` and `vitrail predict` run it where nobody asks for anything, but with the common
  optimizer. Training is in bf16 where the processor multiplies it, and clips the gradients; answers are in fp32, batch
  norms folded. It is compared with the peers in fp32, which is what they run where nobody asks.
- timm, transformers: as their users would, in PyTorch's default memory layout, eager.

Figures are images per second of processor time, which on one thread is what the clock shows where nothing else runs;
where something does, it is steadier. The same by the clock is kept beside them. Every finished model is kept in
results/model_speed.json and not measured again, so the script can be stopped and started, and two of them can share the
work by --models. Needs the extra `peers`.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alternate import Contestant, Turn, ratios, rounds_of, save, started
from same_models import CLASSES, TIMM, create, largest_differences, libraries, logits_of

SPEED = (
    *("resnet18", "resnet34", "resnet50", "mobilenetv3_small_100", "mobilenetv3_large_100", "ghostnet_100"),
    *("repvit_m0_9", "mobilevit_xxs", "mobilevit_xs", "mobilevit_s", "mobilevitv2_050", "mobilevitv2_100"),
    *("vit_tiny_patch16", "vit_small_patch16"),
)
"""The models that are timed: every family, and the sizes that are trained on a CPU."""
DEFAULTS = "vitrail, defaults"
CONTESTANTS = ("vitrail", DEFAULTS, "timm", "transformers")
PARTS = tuple(f"{precision} {phase}" for phase in ("training", "one", "many") for precision in ("fp32", "bf16"))
EMPTY: dict[str, dict] = {"parity": {}, "speed": {}}
RESULTS = Path(__file__).parent / "results"


@dataclass
class Forms:
    """What one contestant trains and what it answers with."""

    training: Any
    answering: Any
    bf16: bool | None = None
    """Whether it trains in bf16, and answers in fp32, whatever the part asks for; None to obey."""
    clip: float = 0.0
    """Largest norm of the gradients; 0 to leave them."""


def forms(library: str, name: str, image_size: int) -> Forms:
    """Return a library's model as it is run there."""
    import torch

    model = create(library.partition(",")[0], name, image_size)
    if not library.startswith("vitrail"):
        return Forms(model, model)
    from vitrail.layers.conv import fold
    from vitrail.runtime.memory import keep_freed_memory
    from vitrail.runtime.precision import choose_precision

    cpu = torch.device("cpu")
    keep_freed_memory()
    choose_precision("fp32", cpu, convolutional=model.channels_last)
    if library == DEFAULTS:
        bf16 = choose_precision("auto", cpu, convolutional=model.channels_last).dtype == torch.bfloat16
        return Forms(model.place(cpu), fold(model).place(cpu), bf16=bf16, clip=1.0)
    return Forms(model.place(cpu), model)


def build(library: str, image_size: int, batch: int, many: int, seconds: float) -> Turn:
    """Return a turn with a model at one of `PARTS`; the model is made when it is first named, and then kept."""
    import torch

    torch.set_num_threads(1)
    known: dict[str, Turn] = {}

    def turn(name: str, part: str) -> dict[str, float]:
        if name not in known:
            known.clear()  # one at a time, for the memory
            torch.manual_seed(0)
            known[name] = build_one(library, name, image_size, {"training": batch, "one": 1, "many": many}, seconds)
        return known[name](part)

    return turn


def build_one(library: str, name: str, image_size: int, sizes: dict[str, int], seconds: float) -> Turn:
    """Return a turn of one model at one of `PARTS`; what does as it likes has no turn in bf16."""
    import torch

    form = forms(library, name, image_size)
    optimizer = torch.optim.AdamW(form.training.parameters(), lr=1e-5, fused=True)
    images = {phase: torch.randn(size, 3, image_size, image_size) for phase, size in sizes.items()}
    labels = torch.randint(CLASSES, (sizes["training"],))

    def train(bf16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = logits_of(form.training(images["training"]))
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        if form.clip:
            torch.nn.utils.clip_grad_norm_(form.training.parameters(), form.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def answer(phase: str, bf16: bool) -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            form.answering(images[phase])

    def turn(part: str) -> dict[str, float]:
        precision, phase = part.split()
        bf16 = precision == "bf16"
        if form.bf16 is not None and bf16:
            return {}
        if phase == "training":
            form.training.train()
            return rates(part, lambda: train(bf16 if form.bf16 is None else form.bf16), sizes[phase], seconds)
        form.answering.eval()
        return rates(part, lambda: answer(phase, bf16), sizes[phase], seconds)

    return turn


def rates(part: str, work: Callable[[], None], images: int, seconds: float) -> dict[str, float]:
    """Repeat until that much processor time is spent; return images per second of it, and of the clock's."""
    clock, processor, count, spent = time.perf_counter(), time.process_time(), 0, 0.0
    while spent < seconds:
        work()
        count += images
        spent = time.process_time() - processor
    return {part: count / spent, f"{part}, clock": count / (time.perf_counter() - clock)}


def measure(options: argparse.Namespace) -> None:
    """Compare what has no result yet, and keep it."""
    settings = {key: getattr(options, key) for key in ("image_size", "batch", "many", "seconds", "rounds")}
    path = options.out / "model_speed.json"

    def known(**found: dict) -> dict:
        """Return what is in the file and what was just found, which is written: others may write there too."""
        document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {**settings, **EMPTY}
        if any(document[key] != value for key, value in settings.items()):
            raise SystemExit(f"{path} was measured with other settings; give another --out, or remove it.")
        document |= {key: document[key] | value for key, value in found.items()}
        if found:
            save(options.out, "model_speed", document)
        return document

    for name in TIMM if options.parity else ():
        if name not in known()["parity"]:
            differences = largest_differences(name, options.image_size)
            known(parity={name: differences})
            print(f"{name}: differs by {differences}", flush=True)
    if not set(options.models) - set(known()["speed"]):
        return
    arguments = {key: settings[key] for key in ("image_size", "batch", "many", "seconds")}
    contestants = {library: Contestant(build, {"library": library, **arguments}) for library in CONTESTANTS}
    with started(contestants) as pipes:
        for name in options.models:
            if name in known()["speed"]:
                continue
            print(name, flush=True)
            having = {each: pipes[each] for each in ("vitrail", DEFAULTS, *libraries(name))}
            known(speed={name: rounds_of(having, options.rounds, parts=[(name, part) for part in PARTS])})


def tables(document: dict) -> str:
    """Return a table of our ratios for each phase, the ratios below 1, and the largest differences."""
    titles = {
        "training": f"training step, batches of {document['batch']}",
        "one": "inference, one image",
        "many": f"inference, batches of {document['many']}",
    }
    forms = [("vitrail", "fp32", "fp32"), ("vitrail", "bf16", "bf16"), (DEFAULTS, "fp32", "defaults")]
    columns = [(peer, *form) for peer in ("timm", "transformers") for form in forms]
    lines, slower = [], []
    for phase, title in titles.items():
        lines += ["", f"| {title} | {' | '.join(f'{peer}, {label}' for peer, *_, label in columns)} |"]
        lines += ["|---" * (len(columns) + 1) + "|"]
        for name in sorted(document["speed"], key=TIMM.index):
            figures, cells = document["speed"][name], []
            for peer, ours, precision, label in columns:
                if peer not in figures:
                    cells.append("")
                    continue
                middle, low, high = ratios(figures[ours], figures[peer], f"{precision} {phase}")
                cells.append(f"{middle:.2f} [{low:.2f}, {high:.2f}]")
                if middle < 1:
                    slower.append(f"- `{name}`, {title}, {peer}, {label}: {cells[-1]}")
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
    lines += ["\nSlower than a peer:\n", *(slower or ["- nothing"])]
    for peer in ("timm", "transformers"):
        found = {name: each[peer] for name, each in document["parity"].items() if peer in each}
        worst = max(found, key=found.__getitem__, default="")
        if found:
            lines.append(f"\nLargest difference to {peer}, of {len(found)} models: {found[worst]:.1e}, `{worst}`")
    return "\n".join(lines)


def main() -> None:
    """Compare what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(SPEED), choices=TIMM)
    parser.add_argument("--parity", action=argparse.BooleanOptionalAction, default=True, help="compare the logits too")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8, help="images of a training step")
    parser.add_argument("--many", type=int, default=16, help="images that are answered at once")
    parser.add_argument("--seconds", type=float, default=0.05, help="least processor time of a turn")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print the tables")
    options = parser.parse_args()
    if not options.table:
        measure(options)
    print(tables(json.loads((options.out / "model_speed.json").read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
