"""The commands `convert`, `verify` and `convolutionalize`: conversions of networks, and their verification."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from onebyone.cli import options as o
from onebyone.cli.session import as_json as to_json
from onebyone.cli.session import session


class Form(StrEnum):
    """What to convert to."""

    conv = "conv"
    linear = "linear"


class Level(StrEnum):
    """What the conversion replaces."""

    layers = "layers"
    native = "native"
    graph = "graph"


class Head(StrEnum):
    """How a pooled head is converted."""

    window = "window"
    cam = "cam"


To = Annotated[
    Form | None,
    typer.Option(
        "--to",
        help="conv: linear layers to 1×1 convolutions; linear: 1×1 convolutions to linear.",
        show_default="conv; with --target only what the target would not take",
    ),
]
ForTarget = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="NAME|PROFILE.toml",
        help="Rewrite the nodes that an accelerator would not take (onebyone targets lists them), and list those that "
        "stay. For ONNX models, and at level graph.",
    ),
]
AtLevel = Annotated[
    Level | None,
    typer.Option(
        "--level",
        help="layers: drop-in modules that share the weights; native: nn.Conv2d or nn.Linear; "
        "graph: rewrite the exported graph (a .pt2, or with --shape), or plan the layout of an .onnx as a whole.",
        show_default="layers; graph for a .pt2",
    ),
]
Freeze = Annotated[
    bool,
    typer.Option(
        "--freeze-initialisers",
        help="For ONNX models whose weights are also inputs of the graph: make them constants first.",
    ),
]
Inline = Annotated[
    bool,
    typer.Option(
        "--inline-functions",
        help="For ONNX models with functions: replace their calls by their bodies first.",
    ),
]
Only = Annotated[
    str | None,
    typer.Option("--only", metavar="GLOB", help="Convert only layers whose path matches: 'classifier.*'."),
]


DynamicAxes = Annotated[
    o.Sizes | None,
    typer.Option(
        "--dynamic-axes",
        parser=o.read_axes,
        metavar="A[,B…]",
        help="Axes of the inputs with free sizes in an exported program: 0 for any batch, 0,2,3 for any batch, "
        "height and width.",
        show_default="a .pt2 takes any batch if possible",
    ),
]


def convert(
    context: typer.Context,
    source: o.SourceOrOnnx,
    to: To = None,
    targets: ForTarget = None,
    level: AtLevel = None,
    only: Only = None,
    freeze: Freeze = False,
    inline: Inline = False,
    shape: o.Shape = None,
    weights: o.Weights = None,
    pretrained: o.Pretrained = False,
    dynamic_axes: DynamicAxes = None,
    seed: o.Seed = 0,
    output: Annotated[
        Path | None,
        o.output_option(
            "Write the result: .safetensors (weights), .pt2 (program) or .onnx; the last two need --shape for a "
            "module."
        ),
    ] = None,
    report: Annotated[
        Path | None, o.output_option("Write the changes and refusals as JSON.", "--report")
    ] = None,
) -> None:
    """Convert linear layers to 1×1 convolutions, or 1×1 convolutions to linear layers.

    Layers that cannot be converted are kept unchanged and listed with the reason.
    """
    is_traced = output is not None and output.suffix in (".pt2", ".onnx")
    if output is not None and is_traced and shape is None and not source.endswith((".pt2", ".onnx")):
        raise typer.BadParameter(
            f"a {output.suffix} is traced on an example input, so --shape is required", param_hint="--output"
        )
    with session(context) as run:
        from onebyone import api, atomic_files, loading
        from onebyone.cli import render

        for path in filter(None, (output, report)):
            atomic_files.require_writable(path, source)
        with run.step(f"Opening {source}"):
            network, notes, example = loading.open_model(
                source, weights, shape, seed=seed, pretrained=pretrained
            )
        with run.step("Converting"):
            conversion = api.convert(
                network,
                to and to.value,
                target=targets or None,
                level=level and level.value,
                only=only,
                example=example,
                freeze_initialisers=freeze,
                inline_functions=inline,
                dynamic_axes=dynamic_axes,
            )
        data = render.conversion_data(conversion, source, notes)
        if output is not None:
            with run.step(f"Writing {output}"):
                conversion.save(output, example)
            data["output"] = str(output)
        if report is not None:
            atomic_files.write_text(report, to_json(data))
        run.notes(notes)
        run.result(data, *render.conversion_tables(data))


def verify(
    context: typer.Context,
    source: o.SourceOrOnnx,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="OTHER",
            help="A network to compare SRC with, such as its own export: file.onnx, or as SRC. Without it, SRC is "
            "converted, and compared with the result.",
            show_default=False,
        ),
    ] = None,
    to: To = None,
    targets: ForTarget = None,
    level: AtLevel = None,
    only: Only = None,
    freeze: Freeze = False,
    inline: Inline = False,
    shape: o.Shape = None,
    weights: o.Weights = None,
    pretrained: o.Pretrained = False,
    seed: o.Seed = 0,
) -> None:
    """Convert, and verify that the result computes the same function; or compare with OTHER. Exit code 1 if not equal.

    Weights, and the outputs of each layer on integer inputs, must agree bit for bit. With --shape, the layers are
    also compared on real inputs within a derived bound, and the whole network with its gradients. Exit code 3 if no
    check could run, for example because no layer was converted. With OTHER, outputs on a random example are compared
    (needs --shape), and the first layer that differs is named.
    """
    if other is not None and (to, targets or None, level, only, freeze, inline) != (
        None,
        None,
        None,
        None,
        False,
        False,
    ):
        raise typer.BadParameter("OTHER is compared as it is; the options that convert SRC do not apply")
    with session(context) as run:
        from onebyone import api, loading
        from onebyone.cli import render

        with run.step(f"Opening {source}"):
            network, notes, example = loading.open_model(
                source, weights, shape, seed=seed, pretrained=pretrained
            )
        converted: Any = other
        if other is None:
            with run.step("Converting"):
                converted = api.convert(
                    network,
                    to and to.value,
                    target=targets or None,
                    level=level and level.value,
                    only=only,
                    example=example,
                    freeze_initialisers=freeze,
                    inline_functions=inline,
                )
        with run.progress("Verifying") as progress:
            verification = api.verify(network, converted, example, seed=seed, progress=progress)
        run.notes(notes)
        data = {
            "source": source,
            "notes": list(notes),
            "refused": [] if other is not None else render.to_dicts(converted.refused),
        } | verification.to_dict()
        run.result(data, *render.verification_tables(data))
        if not verification.equivalent:
            raise typer.Exit(3 if verification.nothing_verified else 1)


def convolutionalize(
    context: typer.Context,
    source: o.SourceOrOnnx,
    window: o.WindowOrStated = None,
    channels: o.Channels = None,
    head: Annotated[
        Head,
        typer.Option(
            "--head",
            help="For a pooled head: window pools each window, as on a crop; cam gives the class map before pooling.",
        ),
    ] = Head.window,
    global_context: o.GlobalContext = None,
    weights: o.Weights = None,
    pretrained: o.Pretrained = False,
    seed: o.Seed = 0,
    with_verification: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare with cropping every window; if they differ, write nothing and exit with 1.",
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
        Path | None, o.output_option("Write the dense network as a .pt2 program or an .onnx model.")
    ] = None,
) -> None:
    """Turn a classifier with a fixed input size into a network for images of any size.

    The result predicts every window in one pass: flatten and linear layers become convolutions. Networks with
    operators that do not allow it are refused, with every reason.
    """
    with session(context) as run:
        from onebyone import api, atomic_files, loading
        from onebyone.cli import render

        if output is not None:
            atomic_files.require_writable(output, source)
        with run.step(f"Opening {source}"):
            network, notes = loading.open_model(source, weights, seed=seed, pretrained=pretrained)[:2]
        with run.step("Convolutionalizing"):
            dense = api.convolutionalize(
                network,
                None if window is None else o.window_of(window),
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
                score_kind=score_kind or loading.score_kind_of(source),
            )
        data = render.dense_data(dense, source, notes)
        equivalent = True
        if with_verification:
            with run.progress("Comparing with every window") as progress:
                verification = api.verify(
                    network, dense, seed=seed, min_agreement=min_agreement, progress=progress
                )
            data["verification"] = verification.to_dict()
            equivalent = verification.equivalent
        if output is not None and equivalent:
            with run.step(f"Writing {output}"):
                dense.save(output)
            data["output"] = str(output)
        run.notes(notes)
        run.result(data, *render.dense_tables(data))
        if not equivalent:
            raise typer.Exit(1)
