"""Which timm models the zoo runs: of every model file the one with the fewest parameters, found on the meta device.

The choice is kept in `smallest.json`, since building timm's 1,500 models takes minutes; `python -m
bench.zoo.smallest` makes it anew for the timm that is installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from onebyone.pytorch.files.sources import import_timm

CHOICE = Path(__file__).with_name("smallest.json")
#: Image sides tried, smallest first, for models that take more than one size. Three places of stride 32 at least.
SIDES = (96, 112, 128, 160, 192, 224, 256)
#: Models that change what they compute below their own size (VGG resizes the map before its first linear layer).
NOMINAL_ONLY = ("vgg",)
#: A dense run takes the model's own window up to this size and this many parameters, else its smallest image.
LARGEST_WINDOW, LARGEST_MODEL = 300, 40_000_000


def smallest_models() -> dict[str, tuple[str, int]]:
    """timm model file → its model with the fewest parameters, and their number. Deprecated names are passed over."""
    timm = import_timm()
    registry = timm.models._registry
    chosen: dict[str, tuple[str, int]] = {}
    for name in timm.list_models():
        file = registry._model_to_module[name]
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
        count = sum(p.numel() for p in model.parameters())
        if file not in chosen or count < chosen[file][1]:
            chosen[file] = (name, count)
    return chosen


def describe(file: str, name: str, parameters: int) -> dict[str, Any]:
    """A chosen model with the image sides it is run at: `side` (the smallest) and `window` (for the dense form)."""
    timm = import_timm()
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False).eval()
    config = model.default_cfg
    channels, nominal, _ = config["input_size"]
    side = nominal
    if not config.get("fixed_input_size") and file not in NOMINAL_ONLY:
        side = next((s for s in SIDES if s < nominal and _runs(model, channels, s)), nominal)
    own = file in NOMINAL_ONLY or (nominal <= LARGEST_WINDOW and parameters <= LARGEST_MODEL)
    return {
        "model": name,
        "parameters": parameters,
        "channels": channels,
        "nominal": nominal,
        "side": side,
        "window": nominal if own else side,
    }


def _runs(model: torch.nn.Module, channels: int, side: int) -> bool:
    try:
        with torch.no_grad():
            model(torch.empty(2, channels, side, side, device="meta"))
    except Exception:  # whatever a model says to a size that it does not take
        return False
    return True


def load() -> dict[str, dict[str, Any]]:
    """The choice that is kept: timm model file → model, parameters, channels, nominal, side, window."""
    models: dict[str, dict[str, Any]] = json.loads(CHOICE.read_text(encoding="utf-8"))["models"]
    return models


def save(chosen: dict[str, tuple[str, int]]) -> None:
    """Keep the choice."""
    models = {file: describe(file, name, count) for file, (name, count) in sorted(chosen.items())}
    text = json.dumps({"timm": import_timm().__version__, "models": models}, indent=1)
    CHOICE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    save(smallest_models())
