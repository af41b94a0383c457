"""`/docs`: the API for people, by Swagger UI, whose files are beside this one.

The page asks nobody but this server, and runs no script but those files: a policy sees
to it. `swagger/` has version 5.35.0 of swagger-ui-dist as it is published, but for the
comments that point to source maps; `index.html` and `start.js` are ours.
"""

from functools import cache, partial
from pathlib import Path
from typing import Final

from vaultfs.entrypoints.http.calls import Answer, Call, Route

_FILES: Final = Path(__file__).parent / "swagger"
_KINDS: Final = {".css": "text/css", ".html": "text/html", ".js": "text/javascript"}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""For the page and what it loads: nothing within it runs, nothing is asked of anybody else."""


@cache
def _read(name: str) -> bytes:
    return (_FILES / name).read_bytes()


async def _page(name: str, _: Call) -> Answer:
    kind = _KINDS[Path(name).suffix]
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "public, max-age=3600"}
    return Answer(_read(name), 200, f"{kind}; charset=utf-8".encode(), headers)


def _route(path: str, name: str, operation: str, summary: str) -> Route:
    kind = _KINDS[Path(name).suffix]
    return Route("GET", path, partial(_page, name), operation, summary, answer=kind)


ROUTES: Final = (
    _route("/docs", "index.html", "docs", "This API, for people."),
    _route("/docs/start.js", "start.js", "docsStart", "What starts that page."),
    _route("/docs/swagger-ui.css", "swagger-ui.css", "docsStyle", "How it looks."),
    _route("/docs/swagger-ui-bundle.js", "swagger-ui-bundle.js", "docsScript", "What it runs."),
)
