"""The web console: files that `make console` builds, served as they are."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

BUILT = Path(__file__).parent / "console" / "dist"
PATH = "/console"
_HEADERS = {
    # Nothing comes from elsewhere and nobody may frame it, so what a model writes stays text.
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; style-src 'self' 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_MISSING = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>LLM OS</title>
<body style="font: 16px/1.5 sans-serif; max-width: 40em; margin: 4em auto; padding: 0 1em">
<h1>The console is not built</h1>
<p>LLM OS runs, and its APIs are here (<a href="/v1/models">/v1/models</a>,
<a href="/llmos/v1">/llmos/v1</a>). The pages of the web console are made by</p>
<pre>make console</pre>
<p>in the source tree, which needs Node.js 20 or newer. Wheels have them inside.</p>
"""


class Console:
    """The routes of the console from a directory of built files, which may not be there."""

    def __init__(self, directory: Path = BUILT) -> None:
        """Serve what is in `directory` now or later."""
        self._directory = directory

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        assets = StaticFiles(directory=self._directory / "assets", check_dir=False)
        return [
            Route(PATH, self.redirect, methods=["GET"]),
            Route(f"{PATH}/", self.index, methods=["GET"]),
            Mount(f"{PATH}/assets", assets),
        ]

    async def redirect(self, request: Request) -> Response:
        """Send people on to the page, whose links are relative to the slash."""
        return RedirectResponse(f"{PATH}/")

    async def index(self, request: Request) -> Response:
        """Return the one page, or how to get it."""
        page = self._directory / "index.html"
        if not page.is_file():
            return HTMLResponse(_MISSING, 503, _HEADERS)
        return FileResponse(page, headers={**_HEADERS, "cache-control": "no-cache"})
