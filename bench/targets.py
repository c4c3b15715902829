"""Networks for accelerators: what targets refuse, layout operators, bytes and times, before and after conversion.

`python -m bench.targets` converts every network of `bench/target_networks.py`, with few layers, for every target, and
writes bench/results/targets.json. `--whole` takes the networks at their full depth. `--times` measures times only: the
original against both placements of tokens, in ONNX Runtime and OpenVINO. Every row is kept with a fingerprint of the
converter's sources, the network and the target, the commit of the sources and the load of the machine: what was
interrupted goes on, and what changed runs again, networks without results first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import onebyone
from bench.target_networks import NETWORKS, write_onnx
from bench.target_times import ENGINES, Array, geometric_mean, time_ratios
from bench.zoo.totals import machine
from onebyone.atomic_files import write_text
from onebyone.onnx.convert import prepared
from onebyone.onnx.targets.convert import TargetConversion, convert_for_target
from onebyone.targets import Offender, TargetProfile, find_profile, profile_names
from onebyone.verification.onnx_known import KnownOriginal
from onebyone.verification.onnx_models import verify_onnx

RESULTS = Path(__file__).parent / "results" / "targets.json"
SOURCES = Path(onebyone.__file__).parent
#: The sources that decide what a conversion gives.
CONVERTER = ("onnx", "layout", "targets", "laws")
#: conv-only and 4d together, with the tokens on the last axis and in the batch.
PLACEMENTS = {"conv-only and 4d": "width", "conv-only and 4d, tokens in the batch": "batch"}
NOTE = (
    "Times are ratios of medians of rounds in which the original and the converted models take turns, on one thread. "
    "Each row has the commit of the sources that gave it, and the load of the machine at its begin: where the machine "
    "was shared with other work, times carry its noise. With few layers the Mixer is Mixer-S/16; the GPT-2 block is "
    "one block at both depths."
)


def profiles() -> dict[str, TargetProfile]:
    """The targets: conv-only and 4d together in both placements of tokens, and every named one."""
    both = tuple(c for name in ("conv-only", "4d") for c in find_profile(name).constraints)
    found = {}
    for name, axis in PLACEMENTS.items():
        profile = find_profile("conv-only")
        preferred = replace(profile.preferred, token_axis=axis)  # type: ignore[arg-type]
        found[name] = replace(profile, name=name, constraints=both, preferred=preferred)
    return found | {name: find_profile(name) for name in profile_names()}


def fingerprint(*parts: object) -> str:
    """A hash of the sources of the converter and of these networks, and of what else decides a result."""
    digest = hashlib.sha256()
    files = [
        f
        for folder in CONVERTER
        for f in sorted((SOURCES / folder).rglob("*"))
        if f.suffix in (".py", ".toml")
    ]
    for file in [*files, Path(__file__).with_name("target_networks.py")]:
        digest.update(file.read_bytes())
    return hashlib.sha256(f"{digest.hexdigest()} {parts}".encode()).hexdigest()[:16]


def commit() -> str:
    """The commit of the sources that run, with a mark where files of the package differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(SOURCES), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", str(SOURCES))
    return git("rev-parse", "--short", "HEAD") + (", with changes" if changed else "")


def by_reason(offenders: Sequence[Offender]) -> list[dict[str, Any]]:
    """Offenders in groups of one operator, constraint and reason, with the largest number found."""
    groups: dict[tuple[str, str, str], list[Offender]] = {}
    for offender in offenders:
        groups.setdefault((offender.operator, offender.constraint, offender.how), []).append(offender)
    return [
        {
            "operator": operator,
            "constraint": constraint,
            "nodes": len(group),
            "found": max((o.found for o in group), key=lambda found: found if isinstance(found, int) else 0),
            "allowed": group[0].allowed,
            "reason": how,
        }
        for (operator, constraint, how), group in groups.items()
    ]  # fmt: skip


def contents(conversion: TargetConversion) -> str:
    """A hash of a converted model, of the layers that were rewritten in it, and of how it stores values.

    New names hold the target's name, which is left out.
    """
    graph, name = conversion.model.graph, f"/{conversion.target}/"
    text = [str(node) for node in graph] + [str(x) for x in (conversion.layers, conversion.stored)]
    digest = hashlib.sha256("\n".join(text).replace(name, "/target/").encode())
    for constant, value in sorted(
        (str(c).replace(name, "/target/"), v) for c, v in graph.initializers.items()
    ):
        tensor = value.const_value
        digest.update(f"{constant} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def nodes(offenders: Sequence[Offender]) -> int:
    """The number of nodes and inputs that violate a constraint."""
    return len({o.path for o in offenders})


class Network:
    """One network as a file, and its conversions: what several of them share is verified once."""

    def __init__(self, name: str, folder: Path, whole: bool) -> None:
        self.path = folder / "original.onnx"
        self.feeds: dict[str, Array] = write_onnx(name, self.path, small=not whole)
        self.model = ir.load(self.path)
        self.folder = folder
        self._verified: dict[str, dict[str, Any]] = {}

    @cached_property
    def known(self) -> KnownOriginal:
        """What is known of the original on its example, and of layers that conversions share."""
        return KnownOriginal(prepared(self.model), self.feeds, keeps_layers=True)

    def convert(self, profile: TargetProfile) -> tuple[TargetConversion, float]:
        """The conversion, and its seconds."""
        start = time.perf_counter()
        conversion = convert_for_target(self.model, profile)
        return conversion, time.perf_counter() - start

    def verified(self, conversion: TargetConversion) -> dict[str, Any]:
        """The verification of a conversion; that of another one with the same contents is taken again."""
        key = contents(conversion)
        if key not in self._verified:
            start = time.perf_counter()
            verification = verify_onnx(self.model, conversion, self.feeds, known=self.known)
            self._verified[key] = {
                "verified": verification.equivalent,
                "layers_verified_bit_for_bit": sum(bool(layer.bitwise) for layer in verification.layers),
                "layers_verified": len(verification.layers),
                "unverified": list(verification.unverified),
                "max_error": verification.max_error,
                "verification_seconds": round(time.perf_counter() - start, 1),
            }
        return self._verified[key]

    def row(self, profile: TargetProfile) -> dict[str, Any]:
        """What one target would not take, before and after; layout operators, bytes, seconds and the verification."""
        conversion, seconds = self.convert(profile)
        file = conversion.save(self.folder / "converted.onnx")
        row = {
            "offenders_before": nodes(conversion.offenders),
            "offenders_after": nodes(conversion.left),
            "left": by_reason(conversion.left),
            "rewritings": len(conversion.changes),
            "layout_before": dict(conversion.layout_before) | {"total": conversion.layout_before.total()},
            "layout_after": dict(conversion.layout_after) | {"total": conversion.layout_after.total()},
            "bytes_before": self.path.stat().st_size,
            "bytes_after": file.stat().st_size,
            "conversion_seconds": round(seconds, 2),
        }
        unchanged = {"verified": None, "unverified": ["nothing was rewritten"]}
        return row | (self.verified(conversion) if conversion.changes else unchanged)

    def times(self) -> dict[str, dict[str, float]]:
        """Ratios of times of both placements of tokens."""
        files = {"original": self.path}
        for name in PLACEMENTS:
            conversion, _ = self.convert(profiles()[name])
            files[name] = conversion.save(self.folder / f"{len(files)}.onnx")
        return time_ratios(files, self.feeds)


def jobs(
    name: str, depth: str, times: bool, only: str
) -> Iterator[tuple[str, str, Callable[[Network], Any]]]:
    """The results of one network: the key, the fingerprint, and how it is made."""
    if times:
        yield "times", fingerprint(name, depth, "times"), Network.times
        return
    for target, profile in profiles().items():
        if only in target:
            yield target, fingerprint(name, depth, repr(profile)), lambda network, p=profile: network.row(p)


def summary(networks: Mapping[str, Any]) -> dict[str, Any]:
    """By depth: offenders and layout operators of all networks, and the geometric means of time ratios."""
    found: dict[str, Any] = {}
    for depth in sorted({depth for depths in networks.values() for depth in depths}):
        rows = [
            (key, row["result"]) for depths in networks.values() for key, row in depths.get(depth, {}).items()
        ]
        times = [result for key, result in rows if key == "times"]
        found[depth] = {
            "targets": {
                target: totals([result for key, result in rows if key == target]) for target in profiles()
            },
            "geometric_mean_of_time_ratios": {
                engine: {
                    placement: round(geometric_mean([result[engine][placement] for result in times]), 3)
                    for placement in PLACEMENTS
                }
                for engine in (ENGINES if times else ())
            },
            "networks_timed": len(times),
        }
    return found


def totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Sums over the networks of one target."""
    return {
        "networks": len(rows),
        "offenders_before": sum(row["offenders_before"] for row in rows),
        "offenders_after": sum(row["offenders_after"] for row in rows),
        "layout_before": sum(row["layout_before"]["total"] for row in rows),
        "layout_after": sum(row["layout_after"]["total"] for row in rows),
        "networks_with_more_layout_operators": sum(
            row["layout_after"]["total"] > row["layout_before"]["total"] for row in rows
        ),
        "networks_rewritten": sum(row["rewritings"] > 0 for row in rows),
        "not_equivalent": sum(row["verified"] is False for row in rows),
    }


def main(arguments: Sequence[str] | None = None, results: Path = RESULTS) -> int:
    """Measure what has no result of the same fingerprint yet; return 1 if a conversion is not equivalent."""
    parser = argparse.ArgumentParser("python -m bench.targets", description=__doc__)
    parser.add_argument("--whole", action="store_true", help="the networks at their full depth")
    parser.add_argument(
        "--times", action="store_true", help="times in ONNX Runtime and OpenVINO, and nothing else"
    )
    parser.add_argument("--only", default="", help="networks whose name contains this text")
    parser.add_argument("--target", default="", help="targets whose name contains this text")
    options = parser.parse_args(arguments)
    depth = "whole" if options.whole else "few layers"
    data: dict[str, Any] = (
        json.loads(results.read_text(encoding="utf-8")) if results.exists() else {"networks": {}}
    )
    sources = commit()
    for name in sorted((n for n in NETWORKS if options.only in n), key=lambda n: rows_of(data, n, depth)):
        kept = data["networks"].setdefault(name, {}).setdefault(depth, {})
        waiting = [
            job for job in jobs(name, depth, options.times, options.target)
            if kept.get(job[0], {}).get("fingerprint") != job[1]
        ]  # fmt: skip
        if not waiting:
            continue
        with tempfile.TemporaryDirectory() as folder:
            network = Network(name, Path(folder), options.whole)
            for key, mark, make in waiting:
                load = os.getloadavg()[0]
                result = make(network)
                kept[key] = {
                    "fingerprint": mark,
                    "commit": sources,
                    "load": round(load, 1),
                    "result": result,
                }
                data |= {
                    "note": NOTE,
                    "machine": machine(),
                    "threads": 1,
                    "summary": summary(data["networks"]),
                }
                write_text(results, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
                print(depth, name, key, short(key, kept[key]["result"]), flush=True)
    rows = [row for depths in data["networks"].values() for kept in depths.values() for row in kept.values()]
    return int(any(row["result"].get("verified") is False for row in rows))


def rows_of(data: Mapping[str, Any], name: str, depth: str) -> int:
    """The number of rows that one network has."""
    return len(data["networks"].get(name, {}).get(depth, {}))


def short(key: str, result: Mapping[str, Any]) -> str:
    """One line about a result."""
    if key == "times":
        return json.dumps(result)
    counts = [
        f"{result[f'{what}_before']} → {result[f'{what}_after']} {what}" for what in ("offenders", "bytes")
    ]
    layout = f"{result['layout_before']['total']} → {result['layout_after']['total']} layout operators"
    return ", ".join([*counts, layout, f"verified {result['verified']}"])


if __name__ == "__main__":
    raise SystemExit(main())
