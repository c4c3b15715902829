"""`convert`, `verify` and `convolutionalize`: from one form of a network to the other."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from onebyone.cli import options as o
from onebyone.cli.session import as_json as to_json
from onebyone.cli.session import session


class Form(StrEnum):
    """What to convert to."""

    conv = "conv"
    linear = "linear"


class Level(StrEnum):
    """How deep the conversion goes."""

    layers = "layers"
    native = "native"
    graph = "graph"


class Head(StrEnum):
    """What becomes of a pooled head."""

    window = "window"
    cam = "cam"


class Context(StrEnum):
    """What global pooling inside the network becomes."""

    window = "window"
    image = "image"


To = Annotated[
    Form, typer.Option("--to", help="conv: linear layers to 1×1 convolutions; linear: the way back.")
]
AtLevel = Annotated[
    Level | None,
    typer.Option(
        "--level",
        help="layers: drop-in modules that share the weights; native: real nn.Conv2d or nn.Linear; "
        "graph: the whole exported graph (a .pt2, or with --shape).",
        show_default="layers; graph for a .pt2",
    ),
]
Only = Annotated[
    str | None,
    typer.Option("--only", metavar="GLOB", help="Only layers whose path matches, such as 'classifier.*'."),
]


def convert(
    context: typer.Context,
    source: o.Source,
    to: To = Form.conv,
    level: AtLevel = None,
    only: Only = None,
    shape: o.Shape = None,
    weights: o.Weights = None,
    seed: o.Seed = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write the result: .safetensors (weights) or .pt2 (program, needs --shape).",
            rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", help="Write what changed, and what was refused, as JSON.", rich_help_panel=o.OUTPUT
        ),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Re-express linear layers as 1×1 convolutions, or 1×1 convolutions as linear layers.

    What cannot be converted is left as it is, and listed with its reason.
    """
    if output is not None and output.suffix == ".pt2" and shape is None and not source.endswith(".pt2"):
        raise typer.BadParameter("a .pt2 is traced on an example input: give --shape", param_hint="--output")
    with session(context, as_json) as run:
        from onebyone import api, atomic_files, loading
        from onebyone.cli import render

        for path in filter(None, (output, report)):
            atomic_files.require_writable(path)
        with run.step(f"Opening {source}"):
            network, notes = loading.open_network(source, weights, seed=seed)
            example = None if shape is None else loading.example_input(network, shape, seed=seed)
        with run.step("Converting"):
            conversion = api.convert(
                network, to.value, level=level and level.value, only=only, example=example
            )
        data = render.conversion_data(conversion, source, notes)
        if output is not None:
            with run.step(f"Writing {output}"):
                conversion.save(output, example)
            data["output"] = str(output)
        if report is not None:
            atomic_files.write_text(report, to_json(data))
        render.tell(run, notes)
        run.result(data, *render.conversion_tables(data))


def verify(
    context: typer.Context,
    source: o.Source,
    to: To = Form.conv,
    level: AtLevel = None,
    only: Only = None,
    shape: o.Shape = None,
    weights: o.Weights = None,
    seed: o.Seed = 0,
    as_json: o.Json = False,
) -> None:
    """Convert, and prove that the result computes the same function; exit code 1 if it does not.

    The weights of both are compared, and each layer is probed with integers; both must agree bit for bit.
    With --shape the layers are also compared on real inputs against a derived bound, and the whole network
    with its gradients. Exit code 3 if no check could run: nothing was converted, for one.
    """
    with session(context, as_json) as run:
        from onebyone import api, loading
        from onebyone.cli import render

        with run.step(f"Opening {source}"):
            network, notes = loading.open_network(source, weights, seed=seed)
            example = None if shape is None else loading.example_input(network, shape, seed=seed)
        with run.step("Converting"):
            conversion = api.convert(
                network, to.value, level=level and level.value, only=only, example=example
            )
        with run.progress("Verifying") as tell:
            found = api.verify(network, conversion, example, seed=seed, progress=tell)
        render.tell(run, notes)
        data = {
            "source": source,
            "notes": list(notes),
            "refused": render.plain_all(conversion.refused),
        } | found.to_dict()
        run.result(data, *render.verification_tables(data))
        if not found.equivalent:
            raise typer.Exit(3 if found.nothing_verified else 1)


def convolutionalize(
    context: typer.Context,
    source: o.Source,
    window: o.Window,
    channels: o.Channels = None,
    head: Annotated[
        Head,
        typer.Option(
            "--head",
            help="A pooled head: window gives the numbers of cropping; cam the class map before pooling.",
        ),
    ] = Head.window,
    global_context: Annotated[
        Context | None,
        typer.Option(
            "--context",
            help="Global pooling inside the network: over the window, or over the whole image; "
            "refused where not said.",
        ),
    ] = None,
    weights: o.Weights = None,
    seed: o.Seed = 0,
    prove: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare with cropping every window; where it differs, write nothing and exit with 1.",
        ),
    ] = False,
    min_agreement: o.MinAgreement = 0.5,
    classes: o.Classes = None,
    mean: o.Mean = None,
    std: o.Std = None,
    scale: o.Scale = None,
    colour_order: o.ColourOrder = None,
    score_kind: o.ScoreKind = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the any-size network as a .pt2 program.", rich_help_panel=o.OUTPUT
        ),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Turn a classifier of fixed-size windows into a network for images of any size.

    It gives one answer for every window position, in one pass: flatten and linear become convolutions. What
    the network's operators do not allow is refused, with every reason.
    """
    with session(context, as_json) as run:
        from onebyone import api, atomic_files, loading
        from onebyone.cli import render

        if output is not None:
            atomic_files.require_writable(output)
        with run.step(f"Opening {source}"):
            network, notes = loading.open_network(source, weights, seed=seed)
        with run.step("Convolutionalizing"):
            dense = api.convolutionalize(
                network,
                o.window_of(window),
                channels,
                head=head.value,
                context=global_context and global_context.value,
                labels=loading.labels(
                    classes,
                    scale=scale,
                    mean=mean,
                    std=std,
                    colour_order=colour_order,
                    carried=loading.preprocessing_of(source, network),
                ),
                score_kind=score_kind,
            )
        data = render.dense_data(dense, source, notes)
        found = None
        if prove:
            with run.progress("Verifying against every window") as tell:
                found = api.verify(network, dense, seed=seed, min_agreement=min_agreement, progress=tell)
            data["verification"] = found.to_dict()
        equal = found is None or found.equivalent
        if output is not None and equal:
            with run.step(f"Writing {output}"):
                dense.save(output)
            data["output"] = str(output)
        render.tell(run, notes)
        run.result(data, *render.dense_tables(data))
        if not equal:
            raise typer.Exit(1)
