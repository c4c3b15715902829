"""The commands `check` and `targets`: what accelerators would not take of a network, and what they state."""

from __future__ import annotations

from typing import Annotated

import typer

from onebyone.cli import options as o
from onebyone.cli.session import session


def check(
    context: typer.Context,
    source: o.SourceOrOnnx,
    targets: Annotated[
        list[str],
        typer.Option(
            "--target",
            "-t",
            metavar="NAME|PROFILE.toml",
            help="An accelerator (onebyone targets lists them), or a profile of your own. May be given several times.",
        ),
    ],
    shape: o.Shape = None,
    weights: o.Weights = None,
    pretrained: o.Pretrained = False,
    seed: o.Seed = 0,
) -> None:
    """List the nodes that an accelerator would not take: the constraint, the number found and the number allowed.

    Nothing is converted. Each row says whether convert --target mends it, and how. Exit code 0 if the target takes
    every node, 3 if not.
    """
    with session(context) as run:
        from onebyone import api, loading
        from onebyone.cli import render_targets as render

        with run.step(f"Opening {source}"):
            network, notes, example = loading.open_model(
                source, weights, shape, seed=seed, pretrained=pretrained
            )
        with run.step("Checking"):
            found = api.check(network, targets, example=example)
        data = {"source": source} | found.to_dict() | {"notes": [*notes, *found.notes]}
        run.notes(data["notes"])
        run.result(data, *render.target_tables(found.headline(), data))
        if not found.ok:
            raise typer.Exit(3)


def targets(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME|PROFILE.toml]", help="Show the constraints of one target.", show_default="all"
        ),
    ] = None,
) -> None:
    """List the accelerators that check and convert know, or the constraints of one, each with its source."""
    with session(context) as run:
        from onebyone.cli import render_targets as render
        from onebyone.targets import find_profile, profile_names

        profiles = [find_profile(each).to_dict() for each in ([name] if name else profile_names())]
        run.result({"targets": profiles}, *render.profile_tables(profiles, in_full=name is not None))
