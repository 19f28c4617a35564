"""`vitrail models`: what can be trained, and what each costs."""

from fnmatch import fnmatch

import torch
from rich.console import Console
from rich.table import Table

from vitrail.config import ModelsConfig
from vitrail.errors import ConfigError, did_you_mean
from vitrail.evaluation.cost import model_cost
from vitrail.models import create_model, list_models


def run(config: ModelsConfig) -> int:
    """Serve the command line: a table of names, parameters and multiply-adds."""
    patterns = config.patterns or ("*",)
    names = [name for name in list_models() if any(fnmatch(name, pattern) for pattern in patterns)]
    if not names:
        hint = did_you_mean(patterns[0], list_models())
        raise ConfigError(f"No model matches {' or '.join(patterns)}.{hint} `vitrail models` lists all of them.")
    table = Table(title=f"Models, 1000 classes, {config.image_size} x {config.image_size} pixels", title_justify="left")
    table.add_column("model")
    for column in ("parameters", "multiply-adds", "activations"):
        table.add_column(column, justify="right")
    for name in names:
        with torch.device("meta"):
            model = create_model(name, image_size=config.image_size)
        cost = model_cost(model, model.image_size)
        table.add_row(
            name, f"{cost.parameters / 1e6:.2f} M", f"{cost.macs / 1e9:.2f} G", f"{cost.activations / 1e6:.1f} M"
        )
    Console().print(table)
    return 0
