"""The function behind `onebyone view`: a page on this machine that shows a scan."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onebyone.loading import open_dense


def view(
    scan: str | os.PathLike[str],
    image: Any = None,
    *,
    model: str | os.PathLike[str] | None = None,
    port: int = 0,
    host: str = "127.0.0.1",
    opened: Callable[[str], object] | None = None,
) -> None:
    """Serve a page that shows a scan, to this machine only, until interrupted.

    The page lays the score map over the image, draws the detections at any thresholds, and compares windows with their
    crops. Detections can be accepted or rejected, and are saved beside the scan. A scan that is still running is shown
    as far as it is done, and the page follows it.

    Args:
        scan: a score map that `scan` wrote or is writing, or a folder with a `viewer.json` that names its files,
            such as the one of the demo or of `predict`.
        image: the image that was scanned: a path or what `scan` takes; None takes that of the folder.
        model: the file of the any-size network, to compare windows with their crops; None takes that of the folder.
        port: the port; 0 takes a free one.
        host: the address of the interface to listen on. Within a container, "0.0.0.0" lets its port be published to the
            machine's loopback interface; requests under a name that is not a loopback name are refused in any case.
        opened: called with the page's address when it can be opened; None prints it.

    Raises:
        BadInput: the scan, the image or the model cannot be read, or the image has another size than the scan.
        MissingExtra: Starlette or uvicorn is not installed (extra `view`).

    Example:
        onebyone.view("scores.zarr", "slide.tif", model="dense.pt2")
    """
    from onebyone.dense.unfinished import open_scores
    from onebyone.viewing import ScanView
    from onebyone.viewing.scan_folder import scan_parts
    from onebyone.web.server import serve

    parts = scan_parts(Path(scan))
    network = model or parts.model
    dense = None if network is None else open_dense(network)[0]
    shown = parts.image if image is None else image
    scores, path = open_scores(parts.scores)
    serve(ScanView(scores, path, shown, dense), port, opened or print, host)
