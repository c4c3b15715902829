"""`python -m tools.screenshots --demo FOLDER --report FILE --site FOLDER`: pictures of every page, and checks of them.

Opens the demo's page, the report of `compare`, the viewer on the demo's scan, and the explainer in Chromium, each 1280
and 390 pixels wide, in light and dark. Writes `docs/screenshots/PAGE-WIDTH-SCHEME.jpg`, each below 150 kB, and with
`--whole FOLDER` the whole pages as PNG. Fails where a page is wider than the screen or reports an error, and with
`--axe FILE` (axe.min.js of the npm package axe-core) where axe-core finds a violation.
"""

from __future__ import annotations

import argparse
import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from onebyone.dense.unfinished import open_scores
from onebyone.loading import open_dense
from onebyone.viewing import ScanView
from onebyone.viewing.scan_folder import scan_parts
from onebyone.web.server import application

OUTPUT = Path(__file__).parents[1] / "docs" / "screenshots"
SIZES = {1280: 800, 390: 844}
MAX_BYTES = 150_000
VIOLATIONS = """
axe.run(document, {resultTypes: ["violations"]}).then((result) =>
  result.violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.html.slice(0, 150)).join(" | ")}`))
"""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of the viewer of a folder's scan."""
    parts = scan_parts(folder)
    dense = None if parts.model is None else open_dense(parts.model)[0]
    view = ScanView(*open_scores(parts.scores), parts.image, dense)
    server = uvicorn.Server(uvicorn.Config(application(view, "token"), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/token/"
    server.should_exit = True
    thread.join()


def show_viewer(page: Page) -> None:
    """Wait for picture, map and detections, and keep the window of the first detection."""
    page.wait_for_function(
        "typeof viewer !== 'undefined' && viewer && viewer.world.getItemCount() === 2 && state.boxes.length"
        " && [0, 1].every((k) => viewer.world.getItemAt(k).getFullyLoaded())"
    )
    page.evaluate("pin(...state.boxes[0].slice(0, 2))")
    page.wait_for_function("state.window && state.window.crop")


def show_explainer(page: Page) -> None:
    """Wait for the map of the page, and show each view in the middle of its movement."""
    page.wait_for_selector("#window[data-ready]", state="attached")
    page.evaluate(
        """for (const [id, value] of [["fold-share", 70], ["slide-position", 3050]]) {
          document.getElementById(id).value = value;
          document.getElementById(id).dispatchEvent(new Event("input"));
        }"""
    )


def problems(page: Page, axe: str, width: int) -> list[str]:
    """What is wrong with a page: too wide, or violations that axe-core finds."""
    actual = page.evaluate("document.documentElement.scrollWidth")
    found = [f"{actual} pixels wide"] if actual > width else []
    if axe:
        page.evaluate(axe)
        found += page.evaluate(VIOLATIONS)
    return found


def save(picture: bytes, path: Path) -> None:
    """Write a screenshot as JPEG, at the best quality that keeps it small enough."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    for quality in range(90, 20, -10):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, optimize=True, progressive=True)
        if file.tell() < MAX_BYTES:
            break
    path.write_bytes(file.getvalue())


def one_page(
    browser: Any, address: str, name: str, width: int, scheme: str, options: argparse.Namespace
) -> list[str]:
    """Photograph and check one page at one size."""
    context = browser.new_context(
        viewport={"width": width, "height": SIZES[width]}, color_scheme=scheme, bypass_csp=True
    )
    context.set_default_timeout(300_000)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    if name == "viewer":
        show_viewer(page)
    elif name == "explainer":
        show_explainer(page)
    page.wait_for_timeout(1500)  # animations end
    save(page.screenshot(), OUTPUT / f"{name}-{width}-{scheme}.jpg")
    if options.whole:
        page.screenshot(path=options.whole / f"{name}-{width}-{scheme}.png", full_page=True)
    axe = options.axe.read_text("utf-8") if options.axe else ""
    found = [f"{name}, {width}, {scheme}: {line}" for line in errors + problems(page, axe, width)]
    context.close()
    return found


def main() -> int:
    """Photograph and check all pages; the exit code is 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True, help="folder that `onebyone demo` wrote")
    parser.add_argument(
        "--report", type=Path, required=True, help="page that `onebyone compare --html` wrote"
    )
    parser.add_argument("--site", type=Path, required=True, help="folder that `make docs` wrote")
    parser.add_argument("--axe", type=Path, help="axe.min.js")
    parser.add_argument("--whole", type=Path, help="folder for pictures of the whole pages")
    parser.add_argument("--pages", nargs="+", default=["demo", "report", "viewer", "explainer"])
    options = parser.parse_args()
    OUTPUT.mkdir(exist_ok=True)
    found: list[str] = []
    with sync_playwright() as playwright, serving(options.demo) as viewer:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        addresses = {
            "demo": (options.demo / "index.html").resolve().as_uri(),
            "report": options.report.resolve().as_uri(),
            "viewer": viewer,
            "explainer": (options.site / "explainer" / "index.html").resolve().as_uri(),
        }
        for name in options.pages:
            for width in SIZES:
                for scheme in ("light", "dark"):
                    found += one_page(browser, addresses[name], name, width, scheme, options)
        browser.close()
    sys.stdout.write("".join(f"{line}\n" for line in found) or "nothing is wrong\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
