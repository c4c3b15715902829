"""The viewer as a Starlette application: the page, tiles as pictures, and the rest as JSON.

Every address begins with a random token, and the server accepts requests to loopback names only, on every interface
that it listens on, so that other pages in the browser cannot read the scan. Nothing but the static files of this
package and the given scan is served.
"""

from __future__ import annotations

import asyncio
import io
import secrets
import socket
from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput, MissingExtra, OnebyoneError
from onebyone.stores.pictures import pillow
from onebyone.viewing import ScanView

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Mount, Route
except ImportError as error:
    raise MissingExtra("Starlette and uvicorn", "view", "the viewer") from error

if TYPE_CHECKING:
    from collections.abc import Awaitable

HOSTS = ("127.0.0.1", "localhost", "[::1]")
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".txt": "text/plain"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'"
)
_MAX_BODY = 2**22


def application(view: ScanView, token: str) -> Starlette:
    """The application for a scan; all addresses begin with the token."""
    pages = _Pages(view)
    routes = [
        Route("/", pages.static),
        Route("/static/{name}", pages.static),
        Route("/facts.json", _answer(pages.facts)),
        Route("/image/{level:int}/{column:int}/{row:int}.jpg", _answer(pages.image_tile)),
        Route("/map/{label:int}/{level:int}/{column:int}/{row:int}.png", _answer(pages.map_tile)),
        Route("/progress.json", _answer(pages.progress)),
        Route("/boxes.json", _answer(pages.boxes)),
        Route("/window.json", _answer(pages.window)),
        Route("/review", _answer(pages.review), methods=["POST"]),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[h.strip("[]") for h in HOSTS] + list(HOSTS))
    return Starlette(routes=[Mount(f"/{token}", routes=routes)], middleware=[hosts])


class _Pages:
    """The answers of the application. Each method but `static` runs in a thread of its own."""

    def __init__(self, view: ScanView) -> None:
        self.view = view

    async def static(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name == "index.html" and not request.url.path.endswith("/"):
            return Response(status_code=307, headers={"location": f"{request.url.path}/"})
        suffix = name[name.rfind(".") :]
        file = resources.files("onebyone.web") / "static" / name
        if "/" in name or "\\" in name or suffix not in _TYPES or not file.is_file():
            return Response("not found", 404)
        headers = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff"}
        return Response(file.read_bytes(), media_type=_TYPES[suffix], headers=headers)

    def facts(self, request: Request, body: Any) -> Response:
        return JSONResponse(self.view.facts())

    def progress(self, request: Request, body: Any) -> Response:
        return JSONResponse(self.view.progress_facts())

    def image_tile(self, request: Request, body: Any) -> Response:
        if self.view.image is None:
            raise BadInput("the viewer was started without --image")
        p = request.path_params
        return _picture(
            self.view.image.tile(p["level"], p["column"], p["row"]), "JPEG", "image/jpeg", quality=90
        )

    def map_tile(self, request: Request, body: Any) -> Response:
        p, colours = request.path_params, request.query_params.get("colours", "inferno")
        tile = self.view.map_tile(p["label"], p["level"], p["column"], p["row"], colours)
        return _picture(tile, "PNG", "image/png", compress_level=1)

    def boxes(self, request: Request, body: Any) -> Response:
        return JSONResponse(self.view.boxes(_number(request, "threshold", 1), _number(request, "iou", 1)))

    def window(self, request: Request, body: Any) -> Response:
        height, width = self.view.grid.size
        x, y = _number(request, "x", width), _number(request, "y", height)
        return JSONResponse(self.view.window(x, y, request.query_params.get("compare") == "1"))

    def review(self, request: Request, body: Any) -> Response:
        states = body.get("states") if isinstance(body, dict) else None
        if not isinstance(states, list):
            raise BadInput("states: expected a list of detections and their states")
        threshold, iou = _number(request, "threshold", 1), _number(request, "iou", 1)
        return JSONResponse(
            self.view.save_review(threshold, iou, states, request.query_params.get("suffix", ".json"))
        )


def _answer(function: Callable[[Request, Any], Response]) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that runs `function` in a thread; errors of onebyone become one sentence with status 400."""

    async def endpoint(request: Request) -> Response:
        body = None
        if request.method == "POST":
            if int(request.headers.get("content-length") or 0) > _MAX_BODY:
                return JSONResponse({"error": "the request is too large"}, 413)
            try:
                body = await request.json()
            except ValueError:
                return JSONResponse({"error": "the request is not valid JSON"}, 400)
        try:
            return await asyncio.to_thread(function, request, body)
        except OnebyoneError as error:
            return JSONResponse({"error": str(error).splitlines()[0]}, 400)

    return endpoint


def _number(request: Request, name: str, largest: float) -> float:
    text = request.query_params.get(name, "")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= largest:
        raise BadInput(f"{name}={text!r}: expected a number from 0 to {largest}")
    return value


def _picture(pixels: NDArray[np.uint8], format_name: str, media_type: str, **options: Any) -> Response:
    file = io.BytesIO()
    pillow("the viewer").fromarray(pixels).save(file, format_name, **options)
    return Response(file.getvalue(), media_type=media_type, headers={"cache-control": "max-age=3600"})


def serve(
    view: ScanView, port: int = 0, opened: Callable[[str], object] | None = None, host: str = HOSTS[0]
) -> None:
    """Serve a scan until interrupted.

    Parameters
    ----------
    view: the scan.
    port: the port; 0 takes a free one.
    opened: called with the page's address on the loopback interface as soon as requests are accepted.
    host: the IPv4 address of the interface to listen on.

    Raises
    ------
    BadInput
        if the port is in use, or `host` is not the address of an interface.
    """
    token = secrets.token_urlsafe(16)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise BadInput(f"host={host}, port={port}: cannot be used: {error.strerror}") from error
    listener.listen()  # requests wait from here on, so the address can be opened
    if opened is not None:
        opened(f"http://{HOSTS[0]}:{listener.getsockname()[1]}/{token}/")
    settings = uvicorn.Config(application(view, token), log_level="warning", access_log=False)
    uvicorn.Server(settings).run(sockets=[listener])
