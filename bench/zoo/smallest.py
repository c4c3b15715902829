"""The timm models of the zoo: from every model file the one with the fewest parameters, found on the meta device.

The selection is stored in `smallest.json`, since building timm's 1,500 models takes minutes; `python -m
bench.zoo.smallest` makes it again for the installed timm.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from onebyone.pytorch.files.sources import import_timm

CHOICE = Path(__file__).with_name("smallest.json")
#: Image sides to try, smallest first, for models that take more than one size: at least three positions at stride 32.
SIDES = (96, 112, 128, 160, 192, 224, 256)
#: Models that compute something else below their nominal size (VGG resizes the map before its first linear layer).
NOMINAL_ONLY = ("vgg",)
#: The dense window is the nominal size up to this size and this many parameters, else the smallest image side.
LARGEST_WINDOW, LARGEST_MODEL = 300, 40_000_000


def smallest_models() -> dict[str, tuple[str, int]]:
    """Return timm model file → (model with the fewest parameters, their number), without deprecated names."""
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
    """Describe a model with its image sides: `side` (the smallest that works) and `window` (of the dense form)."""
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
    except Exception:  # a model may raise anything for a size that it does not accept
        return False
    return True


def load() -> dict[str, dict[str, Any]]:
    """Return the stored selection: timm model file → model, parameters, channels, nominal, side, window."""
    models: dict[str, dict[str, Any]] = json.loads(CHOICE.read_text(encoding="utf-8"))["models"]
    return models


def save(chosen: dict[str, tuple[str, int]]) -> None:
    """Store the selection."""
    models = {file: describe(file, name, count) for file, (name, count) in sorted(chosen.items())}
    text = json.dumps({"timm": import_timm().__version__, "models": models}, indent=1)
    CHOICE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    save(smallest_models())
