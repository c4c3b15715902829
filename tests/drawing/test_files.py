"""PDF and PNG files, saving, notebooks, and the command."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import onebyone
from onebyone.drawing import FIGURES, FORMATS, drawings, render
from onebyone.drawing.theme import THEMES
from onebyone.errors import BadInput, Refused
from tests.cli.conftest import run_command
from tests.drawing import svgs
from tests.drawing.networks import drawing, network


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("theme", THEMES)
def test_a_png_has_its_size_and_its_paper(figure: str, theme: str) -> None:
    data = drawing("tokens")
    with Image.open(io.BytesIO(render(data, figure, theme=theme, format="png"))) as picture:
        wide, high = svgs.size(render(data, figure))
        assert picture.size == pytest.approx((wide / 72 * 300, high / 72 * 300), abs=1)
        assert picture.info["Title"]
        corner = picture.convert("RGB").getpixel((0, 0))
        assert "#{:02x}{:02x}{:02x}".format(*corner) == THEMES[theme]["paper"]  # type: ignore[misc]
        assert len(set(picture.convert("L").tobytes())) > 20


@pytest.mark.parametrize("figure", FIGURES)
def test_a_pdf_holds_truetype_and_no_date(figure: str) -> None:
    data = drawing("tokens")
    pdf = render(data, figure, format="pdf")
    assert pdf.startswith(b"%PDF-")
    assert pdf.rstrip().endswith(b"%%EOF")
    box = re.search(rb"/MediaBox \[\s*([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+)\s*\]", pdf)
    assert box is not None
    assert [float(v) for v in box.groups()[2:]] == pytest.approx(svgs.size(render(data, figure)), abs=0.01)
    assert b"/FontFile2" in pdf  # TrueType, as fonttype 42 embeds it
    assert b"/Type3" not in pdf
    assert b"Date" not in pdf
    assert any(re.search(rb"\sT[jJ]\s", c) for c in _streams(pdf))  # text is text


def _streams(pdf: bytes) -> Iterator[bytes]:
    """The decompressed streams of a PDF."""
    for start in re.finditer(rb"stream\r?\n(?=\x78)", pdf):
        yield zlib.decompressobj().decompress(pdf[start.end() :])


def test_a_picture_of_the_user_s_is_carried_inside(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (700, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    data = drawing("demo")
    for given in (tmp_path / "image.png", noise, noise[..., 0]):
        svg = render(data, "window", image=given)
        assert svgs.faults(svg) == []
        assert len(svg) < 700_000
    assert render(data, "window", format="png", image=noise) != render(data, "window", format="png")


def test_save_writes_every_figure_whole(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    found = onebyone.draw(*network("neither"))
    assert tuple(found) == found.figures == ("strip", "window")
    written = found.save(
        tmp_path / "new" / "folder", FORMATS, tuple(THEMES), progress=lambda *n: told.append(n)
    )
    assert told == [(n, 2 * 3 * 2) for n in range(1, 13)]
    assert {w.path for w in written} == set((tmp_path / "new" / "folder").iterdir())
    for w in written:
        assert w.path.name == f"{w.figure}-{w.theme}.{w.format}"
        assert w.path.read_bytes() == found.render(w.figure, w.theme, w.format)
        assert w.bytes == w.path.stat().st_size


def test_save_refuses_before_it_writes(tmp_path: Path) -> None:
    found = drawings(drawing("demo"), ["F2"])
    for arguments, named in (
        ((("gif",),), "formats=gif"),
        ((("svg",), ("blue",)), "themes=blue"),
        (((),), "formats=none"),
    ):
        with pytest.raises(BadInput, match=named):
            found.save(tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write in"):
        found.save(tmp_path / "file")


def test_a_file_name_takes_one_figure(tmp_path: Path) -> None:
    one = drawings(drawing("demo"), ["F3"])
    (written,) = one.save(tmp_path / "deep" / "network.svg")
    assert written.path == tmp_path / "deep" / "network.svg"
    assert written.path.read_bytes() == one.render("F3")
    (written,) = one.save(tmp_path / "network.PDF")
    assert written.path.read_bytes().startswith(b"%PDF")
    for arguments, reason in (
        ((("svg",), ("light", "dark")), "cannot write 2 pictures to one file"),
        ((("png",),), "cannot write png to .*network.svg: expected a name that ends in .png"),
    ):
        with pytest.raises(BadInput, match=reason):
            one.save(tmp_path / "network.svg", *arguments)
    with pytest.raises(BadInput, match="expected a folder, or one figure"):
        drawings(drawing("demo"), ["F2", "F3"]).save(tmp_path / "network.svg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "network.PDF"]
    (tmp_path / "folder.svg").mkdir()
    (written,) = one.save(tmp_path / "folder.svg")  # a folder that exists stays a folder
    assert written.path == tmp_path / "folder.svg" / "F3-light.svg"


def test_figures_that_are_not_there() -> None:
    model, x = network("neither")
    some = onebyone.draw(model, x)
    assert some.figures == ("strip", "window")
    assert "F1      not drawn: the run called no fully connected layer" in str(some)
    with pytest.raises(Refused, match="no figure can be drawn"):
        onebyone.draw(model, x, figures=["F1", "F3"])
    with pytest.raises(BadInput, match="figures=F7"):
        onebyone.draw(model, x, figures=["F7"])
    with pytest.raises(BadInput, match="layer='head'"):
        onebyone.draw(*network("demo"), layer="head")
    with pytest.raises(BadInput, match="example: is missing"):
        onebyone.draw(model)


def test_an_exported_program_is_drawn_as_well() -> None:
    model, x = network("demo")
    found = onebyone.draw(torch.export.export(model, (x,)), figures=["F3"])
    own = drawing("demo")
    for a, b in zip(found.data.replaced, own.replaced, strict=True):
        assert (a.path, a.kernel, a.map, a.flatten is None) == (b.path, b.kernel, b.map, b.flatten is None)
    assert [(s.role, s.output) for s in found.data.steps] == [(s.role, s.output) for s in own.steps]


def test_a_notebook_shows_the_figures() -> None:
    page = drawings(drawing("neither"))._repr_html_()
    assert page.count("<picture>") == 2
    assert page.count("prefers-color-scheme: dark") == 2
    assert "F1: the run called no fully connected layer" in page
    assert re.search(r'alt="[^"]{20,}"', page)
    assert "http" not in page


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    done = run_command(
        "draw", ":plain", "--shape", "1,3,16,16", "-o", out, "--figures", "F2,window", "--json"
    )
    assert (done.code, sorted(p.name for p in out.iterdir())) == (0, ["F2-light.svg", "window-light.svg"])
    assert [f["figure"] for f in done.json["files"]] == ["F2", "window"]
    assert done.json["drawing"]["geometry"]["window"] == [16, 16]
    assert all(svgs.faults(p.read_bytes()) == [] for p in out.iterdir())
    done = run_command(
        "draw",
        ":plain",
        "--shape",
        "1,3,16,16",
        "-o",
        out,
        "--format",
        "png,pdf",
        "--theme",
        "dark",
        "--width",
        "5",
    )
    assert done.code == 0
    assert "F3-dark.pdf" in done.out.replace("\n", "")
    one = ("draw", ":plain", "--shape", "1,3,16,16", "--figures", "F3", "-o")
    assert run_command(*one, tmp_path / "d.png").code == 0
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    several = run_command("draw", ":plain", "--shape", "1,3,16,16", "-o", tmp_path / "d.svg")
    assert several.code == 2
    assert "expected a folder, or one figure" in " ".join(several.err.split())
    assert not (tmp_path / "d.svg").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--figures", "F9"), 2, "--figures F9: expected some of"),
        (("--format", "gif"), 2, "--format gif: expected some of"),
        (("--theme", "blue"), 2, "--theme blue: expected some of"),
        (("--width", "wide"), 2, "--width wide"),
        (("--layer", "nowhere"), 2, "--layer nowhere"),
        (("--image", "nowhere.png"), 2, "cannot read nowhere.png"),
        (("--window", "7"), 2, "window"),
    ],
)
def test_what_the_command_cannot_do(tmp_path: Path, words: tuple[str, ...], code: int, said: str) -> None:
    done = run_command("draw", ":plain", "--shape", "1,3,16,16", "-o", tmp_path / "out", *words)
    assert done.code == code
    assert said in " ".join(done.err.split())
    assert not (tmp_path / "out").exists()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    data = drawing("demo")
    from onebyone.drawing import fonts

    fonts._metrics.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(onebyone.errors.MissingExtra, match=r"onebyone\[report\]"):
        render(data, "F2")


@pytest.mark.zoo
@pytest.mark.parametrize("shelf", ["vgg11", "vit"])
def test_the_pictures_of_the_documentation_are_up_to_date(shelf: str) -> None:
    """They are made by `onebyone draw`, as docs/pictures.md says, and show the same texts as a new figure."""
    name = {"vgg11": "torchvision:vgg11", "vit": "timm:vit_small_patch16_224"}[shelf]
    kept = sorted((Path(__file__).parents[2] / "docs" / "pictures").glob(f"{shelf}-*.svg"))
    assert kept
    for path in kept:
        _, figure, theme = path.stem.split("-")
        assert svgs.texts(path.read_bytes()) == svgs.texts(render(drawing(name), figure, theme=theme))
        assert svgs.faults(path.read_bytes()) == []
        assert path.stat().st_size < 200_000
