"""`python -m bench.view`: how soon `onebyone view` shows a picture of 10^10 pixels, measured in Chromium.

The scan is that of `bench.sparse_scan`. The command runs in a process of its own. Times in the browser are the page's
own clock, from the request of the address on: until the first tile of the image is drawn (`first_picture_seconds`), all
tiles of the image and of the score map that the page shows at first are, and the detections are. `zoomed_seconds` is
the time from a jump to full resolution until its tiles are drawn. Tiles are also requested one after another, without a
browser, across all levels: `tile_milliseconds` are median and maximum of these. `peak_bytes` is the largest resident
set of the server.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from rich.console import Console

from bench import sparse_scan
from bench.zoo.work import ROOT
from onebyone.records import table
from onebyone.viewing.tile_grid import TILE, TileGrid

RESULTS = ROOT / "bench" / "results" / "view.json"
CHROMIUM = "/usr/bin/chromium"
#: Notes the page's own clock, in each frame, when parts of the picture are there.
WATCH = """
window.seen = {};
const look = () => {
  const note = (name, there) => { if (there && !(name in seen)) seen[name] = performance.now() / 1000; };
  if (typeof viewer !== "undefined" && viewer) {
    const [image, map] = [0, 1].map((k) => viewer.world.getItemAt(k));
    note("first_picture_seconds", image && image.getTilesToDraw && image.getTilesToDraw().length);
    note("image_seconds", image && image.getFullyLoaded());
    note("map_seconds", map && map.getFullyLoaded());
    note("boxes_seconds", state.boxes.length);
  }
  requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int, float]]:
    """The address of the page, the server's process, and the seconds until it accepted requests."""
    command = ["view", str(folder / "scores.zarr"), "--image", str(folder / "image.zarr"), "--no-browser"]
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "onebyone", *command],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.search(r"http://\S+/", line):
                    yield found[0], process.pid, time.perf_counter() - start
                    return
            raise RuntimeError("the viewer ended without an address")
        finally:
            process.terminate()


def in_browser(address: str, side: int) -> dict[str, float]:
    """Seconds until the parts of the first picture are shown, and those of a jump to full resolution."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800}, bypass_csp=True)
        page.set_default_timeout(600_000)
        page.add_init_script(WATCH)
        page.goto(address)
        page.wait_for_function("Object.keys(seen).length === 4", polling=50)
        seconds: dict[str, float] = page.evaluate("seen")
        seconds["zoomed_seconds"] = zoom(page, side)
        browser.close()
    return {name: round(value, 3) for name, value in seconds.items()}


def zoom(page: Page, side: int) -> float:
    """Jump to the square at full resolution; seconds until the tiles of the image and the map are drawn."""
    middle = sum(sparse_scan.square(side)) / 2
    milliseconds: float = page.evaluate(
        """async (middle) => {
          const start = performance.now();
          const image = viewer.world.getItemAt(0), map = viewer.world.getItemAt(1);
          viewer.viewport.zoomTo(image.imageToViewportZoom(1), null, true);
          viewer.viewport.panTo(image.imageToViewportCoordinates(middle, middle), true);
          viewer.forceRedraw();
          await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
          while (!(image.getFullyLoaded() && map.getFullyLoaded()))
            await new Promise((resolve) => requestAnimationFrame(resolve));
          return performance.now() - start;
        }""",
        middle,
    )
    return milliseconds / 1000


def tile_latency(address: str, side: int, count: int = 60) -> dict[str, dict[str, float]]:
    """Milliseconds of tiles that are requested one by one, `count` of each kind, at random places of all levels."""
    grid, generator = TileGrid((side, side)), random.Random(0)
    figures = {}
    for kind in ("image", "map"):
        times = []
        for k in range(count):
            level = grid.min_level + k % (grid.max_level + 1 - grid.min_level)
            most = (grid.shape(level)[0] - 1) // TILE
            at = f"{level}/{generator.randint(0, most)}/{generator.randint(0, most)}"
            path = f"image/{at}.jpg" if kind == "image" else f"map/0/{at}.png"
            start = time.perf_counter()
            with urllib.request.urlopen(address + path) as answer:
                answer.read()
            times.append(1000 * (time.perf_counter() - start))
        figures[kind] = {"median": round(statistics.median(times), 1), "maximum": round(max(times), 1)}
    return figures


def peak_memory(process: int) -> int:
    """The largest resident set of a process in bytes, as Linux counts it."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def measured(side: int) -> dict[str, Any]:
    """All figures, for an image that is `side` pixels high and wide."""
    with tempfile.TemporaryDirectory() as folder:
        sparse_scan.write_image(Path(folder) / "image.zarr", side)
        sparse_scan.write_scores(Path(folder) / "scores.zarr", side)
        with served(Path(folder)) as (address, process, seconds):
            idle = peak_memory(process)
            browser = in_browser(address, side)
            return {
                "server_start_seconds": round(seconds, 3),
                **browser,
                "tile_milliseconds": tile_latency(address, side),
                "peak_bytes_at_start": idle,
                "peak_bytes": peak_memory(process),
            }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=100_000, help="pixels per side of the image")
    side = parser.parse_args().side
    figures = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2), "pixels": side * side}
    figures |= measured(side)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    Console().print(table(("figure", "value"), [(k, str(v)) for k, v in figures.items()]))


if __name__ == "__main__":
    main()
