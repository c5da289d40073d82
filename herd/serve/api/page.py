"""The chat page: one HTML file, its style and its scripts, from herd/serve/web. Nothing is loaded from elsewhere."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

WEB = Path(__file__).parent.parent / "web"
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
# What a model says must not be able to load or run anything even if it got past the page's own care: scripts and style
# are these files and nothing inside the page, and no text can become HTML (Trusted Types without a policy).
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; media-src blob:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # after an update no old script runs beside a new one
}


def routes() -> APIRouter:
    """The page and its files, open to everyone: the page itself asks for a key."""
    router = APIRouter(tags=["public"])
    page = (WEB / "index.html").read_text(encoding="utf-8")
    files = {path.name: path for path in WEB.iterdir() if path.suffix in TYPES}
    contents = {name: path.read_bytes() for name, path in files.items()}

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=HEADERS)

    @router.get("/web/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in contents:
            raise HTTPException(404, "the page has no such file")
        return Response(contents[name], headers={**HEADERS, "Content-Type": TYPES[files[name].suffix]})

    return router
