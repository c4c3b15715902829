"""The command `info`: what a network consists of, what converts, and what it costs."""

from __future__ import annotations

import typer

from onebyone.cli import options as o
from onebyone.cli.session import session


def info(
    context: typer.Context,
    source: o.SourceOrOnnx,
    window: o.WindowOfSource = None,
    channels: o.Channels = None,
    shape: o.Shape = None,
    weights: o.Weights = None,
    pretrained: o.Pretrained = False,
    seed: o.Seed = 0,
) -> None:
    """Describe a network: layers, kernels and cost, what converts, what is refused, and images of any size."""
    with session(context) as run:
        from onebyone import api, loading
        from onebyone.cli import render

        with run.step(f"Opening {source}"):
            network, notes, example = loading.open_model(
                source, weights, shape, seed=seed, pretrained=pretrained
            )
        with run.step("Reading its layers"):
            size = None if window is None else o.window_of(window)
            overview = api.info(network, example, window=size, channels=channels, name=source)
        overview = overview.with_notes(notes)
        run.notes(overview.notes)
        run.result(overview.to_dict(), *render.overview_tables(overview))
