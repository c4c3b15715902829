"""Tables of the commands `check` and `targets`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from onebyone.cli.render import table_of

Data = Mapping[str, Any]


def target_tables(headline: str, data: Data) -> list[RenderableType]:
    """What targets would not take of a network."""
    headers = ("node", "operator", "target", "constraint", "of", "found", "allowed", "mendable", "how")
    words = {True: "yes", False: "no", None: ""}
    names = ("path", "operator", "target", "constraint", "subject", "found", "allowed")
    rows = [(*(str(o[n]) for n in names), words[o["mendable"]], o["how"]) for o in data["offenders"]]
    return [*([table_of("Not taken", headers, rows)] if rows else []), Text(headline, style="bold")]


def profile_tables(profiles: Sequence[Data], in_full: bool) -> list[RenderableType]:
    """The targets by name, or the constraints of each with their sources."""
    if not in_full:
        rows = [(p["name"], p["title"], p["preferred"]["form"], str(len(p["constraints"]))) for p in profiles]
        return [table_of("Targets", ("name", "accelerator", "preferred form", "constraints"), rows)]
    return [_profile(profile) for profile in profiles]


def _profile(profile: Data) -> RenderableType:
    entries = [
        *profile["constraints"],
        *({**n, "operators": "", "constraint": n["text"]} for n in profile["notes"]),
    ]
    status = {True: "official", False: "not official"}
    rows = [(e["operators"], e["constraint"], status[e["official"]], e["source"]) for e in entries]
    return table_of(
        f"{profile['name']}: {profile['title']}", ("operators", "constraint", "status", "source"), rows
    )
