"""A small comparison and its page, and an offline browser that records errors and requests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import onebyone
from onebyone.comparison import Comparison, experiments
from onebyone.comparison.claims import CLAIMS
from tests.comparison.conftest import network

CHROMIUM = Path("/usr/bin/chromium")
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ARTEFACTS = Path(__file__).parents[2] / ".artefacts"
LONG = ("S5", "R4")
IMAGE = torch.randn(1, 3, 8, 7, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    """All rows except the two that train networks."""
    with budget_that_is_never_spent():
        return onebyone.compare(network(), IMAGE, budget=5, rows=[r for r in CLAIMS if r not in LONG])


@contextmanager
def budget_that_is_never_spent() -> Iterator[None]:
    """No row is left out for its time, however busy the machine is: the clock of the budget stands still."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "time", SimpleNamespace(perf_counter=lambda: 0.0))
        yield


@pytest.fixture(scope="session")
def page(comparison: Comparison) -> str:
    return comparison.to_html(title="a small network")


@dataclass
class Opened:
    """A page in the browser; `met` lists console messages, errors, dialogs, and requests to other addresses."""

    page: Any
    met: list[str] = field(default_factory=list)

    def watch(self) -> Opened:
        self.page.on("console", lambda m: self.met.append(f"{m.type}: {m.text}"))
        self.page.on("pageerror", lambda e: self.met.append(f"error: {e}"))
        self.page.on("dialog", lambda d: self.met.append(f"dialog: {d.message}"))
        self.page.on("request", self._asked)
        return self

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.met.append(f"request: {request.url}")


Open = Callable[..., Opened]


def require(chromium: Path, environment: Mapping[str, str]) -> Any:
    """Playwright, if there is a browser; without either, tests are skipped on a user's machine and fail under CI=true.

    The browser is that of Debian; Playwright's own browser is never downloaded.
    """
    try:
        from playwright import sync_api
    except ImportError:
        reason = "Playwright is not installed: pip install playwright"
    else:
        if chromium.exists():
            return sync_api
        reason = f"there is no Chromium at {chromium}: apt-get install chromium"
    if environment.get("CI") == "true":
        pytest.fail(f"{reason} (under CI=true this may not be skipped)")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, headless."""
    with require(CHROMIUM, os.environ).sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=OPTIONS)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Write HTML to a file and open it offline; every request to another address is aborted."""
    contexts = []

    def open_it(html: str, **options: Any) -> Opened:
        file = tmp_path / f"page{len(contexts)}.html"
        file.write_text(html, encoding="utf-8")
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        context.set_default_timeout(300_000)  # milliseconds; a busy machine is slow
        context.route(
            lambda url: not url.startswith(("file:", "data:", "blob:")), lambda route: route.abort()
        )
        opened = Opened(context.new_page()).watch()
        opened.page.goto(file.as_uri())
        return opened

    yield open_it
    for context in contexts:
        context.close()
