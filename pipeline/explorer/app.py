"""The explorer's web application: a page, and the questions it asks. It keeps nothing of a visitor but dropped files.

What a visitor looks at stands in the page's own address, so that visitors cannot mix and a link restores it.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from matplotlib import colormaps
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from devil_pipe.pipeline.cli_saliency import SCALES
from devil_pipe.pipeline.explorer.pictures import GoneError, Kind, Library
from devil_pipe.pipeline.explorer.sides import Side
from devil_pipe.pipeline.explorer.turns import BusyError, Turns
from devil_pipe.pipeline.explorer.units import Units
from devil_pipe.stages.common.decoding import MOST_PIXELS
from devil_pipe.stages.saliency.overlays import COLOURS
from devil_pipe.store.errors import InputError, UsageError

STATIC = Path(__file__).parent / "static"
LONGEST = {"shown": 1280, "thumb": 192}
SCALE = int(SCALES[False])
"""Nats at either end of the colours at first: the same for every map and never fitted, as of `devil-pipe saliency`."""

_MOST_QUERIES = 8
_MOST_JSON = 1 << 16
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
T = TypeVar("T")


class TooLargeError(InputError):
    """More bytes than are taken."""


class _Question(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    side: int = Field(0, ge=0)
    kind: Literal["sample", "picture"]
    name: str = Field(max_length=500)


class DescribeQuestion(_Question):
    """What do these layers (null: all together) say at a place in pixels, or of the whole picture?"""

    layers: list[str | None] = Field(min_length=1, max_length=200)
    at: tuple[float, float] | None = None
    margin: bool = True


class MapsQuestion(_Question):
    """Where on a layer (null: all together) is each query likelier than without looking?"""

    layer: str | None
    queries: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(min_length=1, max_length=_MOST_QUERIES)


@dataclass(frozen=True)
class Explorer:
    """What the page asks: the translators, the pictures, and the one thread that answers."""

    sides: Sequence[Side]
    library: Library
    turns: Turns
    units: Units | None
    most_bytes: int
    closing: Callable[[], None] = lambda: None

    def routes(self) -> list[Route | Mount]:
        """Every address that is answered."""
        return [
            Route("/", self.page),
            Route("/api/about", self.about),
            Route("/api/samples", self.samples),
            Route("/api/picture", self.picture),
            Route("/api/picture", self.drop, methods=["POST"]),
            Route("/api/describe", self.describe, methods=["POST"]),
            Route("/api/maps", self.maps, methods=["POST"]),
            Route("/api/units", self.unit_list),
            Route("/api/exemplars", self.exemplars),
            Route("/pixels", self.pixels),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]

    async def page(self, _: Request) -> Response:
        """The page itself."""
        return FileResponse(STATIC / "page.html")

    async def about(self, _: Request) -> Response:
        """What the page has to know at first."""
        table = (colormaps[COLOURS](range(256))[:, :3] * 255).round().astype(int).tolist()
        said = {
            "sides": [side.about() for side in self.sides],
            "limits": {"bytes": self.most_bytes, "pixels": MOST_PIXELS, "queries": _MOST_QUERIES},
            "scales": sorted({2, 5, 10, 40} | {SCALE}),
            "scale": SCALE,
            "colours": table,
            "units": None if self.units is None else self.units.about(),
        }
        return JSONResponse(said)

    async def samples(self, request: Request) -> Response:
        """A random draw of the run's pictures, and the photographs."""
        found = await run_in_threadpool(self.library.samples, _number(request.query_params, "draw"))
        return JSONResponse([asdict(sample) for sample in found])

    async def picture(self, request: Request) -> Response:
        """A picture's title and size in pixels."""
        kind, name = _named(request.query_params)
        size = (await run_in_threadpool(self.library.open, kind, name)).size
        title = self.library.title(name) if kind == "sample" else "a dropped picture"
        return JSONResponse({"kind": kind, "name": name, "title": title, "width": size[0], "height": size[1]})

    async def pixels(self, request: Request) -> Response:
        """A picture as the page shows it: decoded and encoded anew, no larger than that needs."""
        kind, name = _named(request.query_params)
        longest = LONGEST.get(request.query_params.get("size", "shown"), LONGEST["shown"])
        content = await run_in_threadpool(self._encoded, kind, name, longest)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    def _encoded(self, kind: Kind, name: str, longest: int) -> bytes:
        picture = self.library.open(kind, name)
        picture.thumbnail((longest, longest))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=92, subsampling=0)
        return buffer.getvalue()

    async def drop(self, request: Request) -> Response:
        """Take a picture: the request's body is its file."""
        # A foreign page could send other types without asking first.
        if request.headers.get("content-type") != "application/octet-stream":
            raise UsageError("expected a picture's bytes as application/octet-stream")
        content = await _body(request, self.most_bytes)
        name, picture = await self._turn(request, partial(self.library.dropped.add, content))
        size = {"width": picture.width, "height": picture.height}
        return JSONResponse({"kind": "picture", "name": name, "title": "a dropped picture", **size})

    async def describe(self, request: Request) -> Response:
        """Descriptions with their margins."""
        asked = await _parsed(request, DescribeQuestion)
        side = self._side(asked)
        work = partial(side.describe, (asked.kind, asked.name), self._reader(asked))
        found = await self._turn(request, partial(work, layers=asked.layers, at=asked.at, margin=asked.margin))
        return JSONResponse({"descriptions": found})

    async def maps(self, request: Request) -> Response:
        """Heat maps as numbers; the page colours them."""
        asked = await _parsed(request, MapsQuestion)
        side = self._side(asked)
        work = partial(side.maps, (asked.kind, asked.name), self._reader(asked))
        found = await self._turn(request, partial(work, layer=asked.layer, queries=asked.queries))
        return JSONResponse({"maps": found})

    async def unit_list(self, request: Request) -> Response:
        """A page of the gallery of units."""
        units = self._units()
        return JSONResponse(units.listed(_number(request.query_params, "from"), request.query_params.get("word", "")))

    async def exemplars(self, request: Request) -> Response:
        """A unit's exemplars in a row, dimmed where its mask is off."""
        content = await run_in_threadpool(self._units().exemplars, request.query_params.get("key", ""))
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    def _units(self) -> Units:
        if self.units is None:
            raise GoneError("this run is of pictures, and has no units")
        return self.units

    def _side(self, asked: _Question) -> Side:
        if asked.side >= len(self.sides):
            raise UsageError(f"side: expected a number below {len(self.sides)}, got {asked.side}")
        return self.sides[asked.side]

    def _reader(self, asked: _Question) -> Callable[[], Any]:
        return partial(self.library.open, asked.kind, asked.name)

    async def _turn(self, request: Request, work: Callable[[], T]) -> T:
        """Wait for one's turn; who leaves before it comes is left out."""
        future = self.turns.submit(work)
        waiting = asyncio.wrap_future(future)
        while not (await asyncio.wait({waiting}, timeout=0.5))[0]:
            if await request.is_disconnected():
                future.cancel()
                raise ClientDisconnect
        return waiting.result()


def application(explorer: Explorer, hosts: Sequence[str]) -> Starlette:
    """The web application; `hosts` are the names it answers to (another site could give this machine a name too)."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(explorer.closing)

    statuses = {GoneError: 404, BusyError: 503, TooLargeError: 413, InputError: 400, Exception: 500}
    return Starlette(
        routes=explorer.routes(),
        lifespan=lifespan,
        middleware=[Middleware(_Guarded), Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={
            **{kind: partial(_failed, status) for kind, status in statuses.items()},
            ClientDisconnect: _left,
        },
    )


class _Guarded:
    """Every answer says that nothing may be loaded from, or framed by, anywhere else."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        await self.app(scope, receive, guarded if scope["type"] == "http" else send)


def _failed(status: int, _: Request, error: Exception) -> Response:
    plain = str(error) if isinstance(error, InputError) else "the server met a fault of its own; its terminal says more"
    return JSONResponse({"error": plain}, status_code=status)


def _left(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _body(request: Request, most: int) -> bytes:
    """The request's body. Raises TooLargeError before more than `most` bytes are held."""
    too_large = TooLargeError(
        f"expected at most {most / 1e6:g} MB, got more; the limit is `devil-pipe explore --upload`"
    )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise too_large
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > most:
            raise too_large
    return bytes(content)


Asked = TypeVar("Asked", bound=BaseModel)


async def _parsed(request: Request, kind: type[Asked]) -> Asked:
    """A question as JSON. Raises UsageError where it is none."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise UsageError("expected a question as application/json")
    try:
        return kind.model_validate_json(await _body(request, _MOST_JSON))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"{'.'.join(map(str, first['loc'])) or 'question'}: {first['msg']}") from None


def _named(given: Mapping[str, str]) -> tuple[Kind, str]:
    if "picture" in given:
        return "picture", given["picture"]
    if "sample" in given:
        return "sample", given["sample"]
    raise UsageError("expected sample=NAME or picture=DIGEST")


def _number(given: Mapping[str, str], key: str) -> int:
    value = given.get(key, "0")
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise UsageError(f"{key}: expected a whole number, got {value!r}")
    return int(value)
