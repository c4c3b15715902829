"""The census that `onebyone compare` carries (row D6): from the zoo's results, and one look at each network.

    python tools/census.py --write   # minutes: runs every network of timm and torchvision once
    python tools/census.py --check   # at once: exit 1 where the zoo's results hold other counts

How many layers could be converted stands in bench/results/zoo.json, and is taken from there. Where they stand,
and their share of parameters and MACs, is measured here: on one run of the network on the zoo's own example.
The zoo's blocks are no networks and are left out; networks that it knows by structure alone are counted, and
not run.
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
CENSUS = ROOT / "src" / "onebyone" / "compare" / "census.json"
sys.path.insert(0, str(ROOT))  # for the zoo's own networks


def counted(zoo: Path = ZOO) -> list[dict[str, Any]]:
    """Each network of the zoo's results: its key, parameters, linear layers and 1×1 convolutions."""
    found = []
    for model in json.loads(zoo.read_text(encoding="utf-8"))["models"]:
        figures: dict[str, Any] = next((s["figures"] for s in model["steps"] if s["name"] == "build"), {})
        if model["group"] != "block" and "eligible" in figures:
            layers = {"linear": figures["eligible"]["linear"], "pointwise": figures["eligible"]["conv"]}
            found.append({"key": model["key"], "parameters": figures["parameters"], **layers})
    return found


def measured(key: str) -> dict[str, list[int]]:
    """Of each place in a network: its layers, parameters and MACs (of one image); and of all layers seen."""
    import torch

    from bench.zoo.models import build, entries, example
    from onebyone.comparison.census import ALL, place_of
    from onebyone.comparison.layer_calls import observe

    entry = next(e for e in entries() if e.key == key)
    with torch.no_grad():
        seen = observe(build(entry), example(entry))
    places: dict[str, list[int]] = {ALL: [0, 0, 0]}
    for layer in seen:
        for name in (ALL, place_of(layer)):
            row = places.setdefault(name, [0, 0, 0])
            for at, value in enumerate((1, layer.parameters, layer.macs)):
                row[at] += value
    return places


def made(networks: Sequence[dict[str, Any]], places: dict[str, dict[str, list[int]]]) -> str:
    """The census as JSON, a line a network."""
    whole = [n | ({"places": places[n["key"]]} if n["key"] in places else {}) for n in networks]
    rows = [json.dumps(network, ensure_ascii=False) for network in whole]
    return '{"networks": [\n' + ",\n".join(rows) + "\n]}\n"


def stored() -> list[dict[str, Any]]:
    """The networks of the census as it stands."""
    networks: list[dict[str, Any]] = json.loads(CENSUS.read_text(encoding="utf-8"))["networks"]
    return networks


def stale() -> list[str]:
    """The networks that the zoo's results count otherwise than the census does, or that one of them lacks."""
    ours = {n["key"]: {k: v for k, v in n.items() if k != "places"} for n in stored()}
    theirs = {n["key"]: n for n in counted()}
    return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))


def write() -> None:
    """Measure what can be run, and store it."""
    warnings.simplefilter("ignore")
    networks = counted()
    places = {}
    for number, network in enumerate(networks, 1):
        key = network["key"]
        if not key.startswith("structure:"):
            places[key] = measured(key)
            sys.stderr.write(f"{number} of {len(networks)}: {key}\n")
    CENSUS.write_text(made(networks, places), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 where the census is stale and was not written, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true", help="say what is stale; write nothing")
    mode.add_argument("--write", action="store_true", help="measure, and store")
    options = parser.parse_args(arguments)
    if options.write:
        write()
        return 0
    told = stale()
    sys.stderr.writelines(f"stale: {key}\n" for key in told)
    return bool(told)


if __name__ == "__main__":
    raise SystemExit(main())
