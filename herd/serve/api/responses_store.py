"""Responses that were given, so that the next one can name them: in memory, bounded, each for its own caller only."""

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

MAX_RESPONSES = 1024
MAX_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class StoredResponse:
    """A response with all that came before it."""

    owner: str
    body: dict[str, Any]
    num_input: int
    """Items that came before its own output."""
    items: tuple[dict[str, Any], ...]
    num_bytes: int


class ResponseStore:
    """The last responses; the one that was used longest ago goes first. For one event loop."""

    def __init__(self, *, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._most, self._max_bytes, self._num_bytes = max_responses, max_bytes, 0
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()

    def put(self, owner: str, body: dict[str, Any], given: list[dict[str, Any]], output: list[dict[str, Any]]) -> None:
        """Keep the response `body` to the items `given`."""
        items = (*given, *output)
        size = sum(len(json.dumps(item)) for item in items)
        one = StoredResponse(owner=owner, body=body, num_input=len(given), items=items, num_bytes=size)
        self._stored[body["id"]] = one
        self._num_bytes += size
        while self._stored and (len(self._stored) > self._most or self._num_bytes > self._max_bytes):
            _, gone = self._stored.popitem(last=False)
            self._num_bytes -= gone.num_bytes

    def get(self, owner: str, response_id: str) -> StoredResponse | None:
        """None where there is none, or where it is somebody else's."""
        one = self._stored.get(response_id)
        if one is None or one.owner != owner:
            return None
        self._stored.move_to_end(response_id)
        return one

    def delete(self, owner: str, response_id: str) -> bool:
        """Whether there was one."""
        if self.get(owner, response_id) is None:
            return False
        self._num_bytes -= self._stored.pop(response_id).num_bytes
        return True
