"""Write the census of networks for `onebyone compare` (row D6), from the zoo's results and a run of each network.

    python tools/census.py --write   # minutes: runs every network of timm and torchvision once
    python tools/census.py --check   # exit code 1 if the zoo's results have other counts

The number of convertible layers is taken from bench/results/zoo.json. Where these layers are in the network, and their
share of parameters and MACs, is measured here by running the network on the zoo's example. The zoo's single blocks are
left out; networks that the zoo knows only by their structure are counted but not run.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "bench" / "results" / "zoo.json"
CENSUS = ROOT / "src" / "onebyone" / "comparison" / "census.json"
sys.path.insert(0, str(ROOT))  # for bench.zoo


def counted(zoo: Path = ZOO) -> list[dict[str, Any]]:
    """The key, parameters, linear layers and 1×1 convolutions of each network of the zoo's results."""
    networks = []
    for model in json.loads(zoo.read_text(encoding="utf-8"))["models"]:
        figures: dict[str, Any] = next((s["figures"] for s in model["steps"] if s["name"] == "build"), {})
        if model["group"] != "block" and "eligible" in figures:
            layers = {"linear": figures["eligible"]["linear"], "pointwise": figures["eligible"]["conv"]}
            networks.append({"key": model["key"], "parameters": figures["parameters"], **layers})
    return networks


def measured(key: str) -> dict[str, list[int]]:
    """The layers, parameters and MACs (for one image) at each kind of location in a network, and in total."""
    import torch

    from bench.zoo.models import build, entries, example
    from onebyone.comparison.census import ALL, layer_use
    from onebyone.comparison.layer_calls import record_layer_calls

    entry = next(e for e in entries() if e.key == key)
    with torch.no_grad():
        seen = record_layer_calls(build(entry), example(entry))
    uses: dict[str, list[int]] = {ALL: [0, 0, 0]}
    for layer in seen:
        for name in (ALL, layer_use(layer)):
            row = uses.setdefault(name, [0, 0, 0])
            for at, value in enumerate((1, layer.parameters, layer.macs)):
                row[at] += value
    return uses


def made(networks: Sequence[dict[str, Any]], uses: dict[str, dict[str, list[int]]]) -> str:
    """The census as JSON, one line per network."""
    merged = [n | ({"uses": uses[n["key"]]} if n["key"] in uses else {}) for n in networks]
    rows = [json.dumps(network, ensure_ascii=False) for network in merged]
    return '{"networks": [\n' + ",\n".join(rows) + "\n]}\n"


def stored() -> list[dict[str, Any]]:
    """The networks of the stored census."""
    networks: list[dict[str, Any]] = json.loads(CENSUS.read_text(encoding="utf-8"))["networks"]
    return networks


def stale() -> list[str]:
    """The networks whose counts differ between the census and the zoo's results, or that are in only one of them."""
    census = {n["key"]: {k: v for k, v in n.items() if k != "uses"} for n in stored()}
    zoo = {n["key"]: n for n in counted()}
    return sorted(key for key in census.keys() | zoo.keys() if census.get(key) != zoo.get(key))


def write() -> None:
    """Run the networks and store the census."""
    warnings.simplefilter("ignore")
    networks = counted()
    uses = {}
    for number, network in enumerate(networks, 1):
        key = network["key"]
        if not key.startswith("structure:"):
            uses[key] = measured(key)
            sys.stderr.write(f"{number} of {len(networks)}: {key}\n")
    CENSUS.write_text(made(networks, uses), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 if the census is out of date and was not written, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true", help="report what is out of date; write nothing")
    mode.add_argument("--write", action="store_true", help="measure and store")
    options = parser.parse_args(arguments)
    if options.write:
        write()
        return 0
    keys = stale()
    sys.stderr.writelines(f"out of date: {key}\n" for key in keys)
    return bool(keys)


if __name__ == "__main__":
    raise SystemExit(main())
