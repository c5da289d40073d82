"""Replies as server-sent events, whatever the API: each has an `EventWriter`, and `write_events` feeds it.

Closing the events, as when the client goes away, closes the replies and with them the generation.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Send

from herd.engine.reply import Reply
from herd.errors import HerdError
from herd.serve.refusal import ApiError

log = logging.getLogger("herd.serve")
T = TypeVar("T")
ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
"""Made once: json.dumps makes one for each event."""
INTERNAL = ApiError("the server failed at this request; the reason is in its log", status=500, code="internal_error")


class EventWriter(Protocol):
    """One API's events of one request."""

    def begin(self) -> Iterable[str]:
        """Before the first token."""

    def push(self, index: int, part: Reply) -> Iterable[str]:
        """For the next part of the reply `index`."""

    def end(self) -> Iterable[str]:
        """After the last part of the last reply."""

    def error(self, error: ApiError) -> Iterable[str]:
        """In place of all that was still to come: the status line has gone out as 200."""


def event(value: Mapping[str, Any], *, name: str | None = None) -> str:
    """One event, with a name where the API has them."""
    return f"{f'event: {name}' + chr(10) if name else ''}data: {ENCODER.encode(value)}\n\n"


async def write_events(
    streams: Sequence[AsyncGenerator[Reply, None]], writer: EventWriter
) -> AsyncGenerator[str, None]:
    """The events of these replies."""
    try:
        for line in writer.begin():
            yield line
        async with aclosing(merge_streams(streams)) as parts:
            async for index, part in parts:
                for line in writer.push(index, part):
                    yield line
        for line in writer.end():
            yield line
    except Exception as error:
        if not isinstance(error, HerdError | ApiError):
            log.error("a reply failed", exc_info=error)
        named = ApiError(str(error)) if isinstance(error, HerdError) else INTERNAL
        for line in writer.error(error if isinstance(error, ApiError) else named):
            yield line


async def begun(streams: Sequence[AsyncGenerator[Reply, None]]) -> list[AsyncGenerator[Reply, None]]:
    """The same streams once each has its first part; one that fails before ends them all, and its error is raised."""

    async def after(first: Reply, parts: AsyncGenerator[Reply, None]) -> AsyncGenerator[Reply, None]:
        async with aclosing(parts):
            yield first
            async for part in parts:
                yield part

    async def first_of(parts: AsyncGenerator[Reply, None]) -> Reply:
        return await anext(parts)

    tasks = [asyncio.create_task(first_of(parts)) for parts in streams]
    try:
        firsts = await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for parts in streams:
            await parts.aclose()
        raise
    return [after(first, parts) for first, parts in zip(firsts, streams, strict=True)]


async def merge_streams(streams: Sequence[AsyncGenerator[Reply, None]]) -> AsyncGenerator[tuple[int, Reply], None]:
    """The parts of several replies as they come, with the number of the reply. Closed early, it closes them all."""
    if len(streams) == 1:  # no tasks and no queue between
        async with aclosing(streams[0]) as parts:
            async for part in parts:
                yield 0, part
        return
    queue: asyncio.Queue[tuple[int, Reply | Exception]] = asyncio.Queue()

    async def pump(index: int, parts: AsyncGenerator[Reply, None]) -> None:
        try:
            async with aclosing(parts):
                async for part in parts:
                    queue.put_nowait((index, part))
        except Exception as error:  # it belongs to who reads
            queue.put_nowait((index, error))

    tasks = [asyncio.create_task(pump(index, parts)) for index, parts in enumerate(streams)]
    try:
        num_open = len(tasks)
        while num_open:
            index, news = await queue.get()
            if isinstance(news, Exception):
                raise news
            num_open -= news.finish_reason is not None
            yield index, news
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class EventStream(StreamingResponse):
    """Server-sent events whose generator is closed, and with it the generation, however the response ends."""

    def __init__(self, lines: AsyncGenerator[str, None]) -> None:
        super().__init__(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._lines = lines

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._lines):
            await super().stream_response(send)


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            # Nobody reads this; 499 is how servers log it.
            raise ApiError("the client went away", status=499)
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
