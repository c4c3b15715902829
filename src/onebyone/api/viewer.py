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
    opened: Callable[[str], object] | None = None,
) -> None:
    """Serve a page that shows a scan, on the loopback interface, until interrupted.

    Args:
        scan: a score map that `scan` wrote, or a folder with a `viewer.json` that names its files.
        image: the image that was scanned: a path or what `scan` takes; None takes that of the folder.
        model: the file of the any-size network, to compare windows with their crops; None takes that of the folder.
        port: the port; 0 takes a free one.
        opened: called with the page's address when it can be opened; None prints it.

    Raises:
        BadInput: the scan, the image or the model cannot be read, or the image has another size than the scan.
        MissingExtra: Starlette or uvicorn is not installed (extra `view`).
    """
    from onebyone.dense import ScoreMap
    from onebyone.viewing import ScanView
    from onebyone.viewing.scan_folder import scan_parts
    from onebyone.web.server import serve

    parts = scan_parts(Path(scan))
    network = model or parts.model
    dense = None if network is None else open_dense(network)[0]
    shown = parts.image if image is None else image
    serve(ScanView(ScoreMap.load(parts.scores), parts.scores, shown, dense), port, opened or print)
