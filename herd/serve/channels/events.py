"""What a webhook of any channel says, in one form; the signature over its bytes; the handshake.

A parser never raises on what it does not know: each part of a delivery is read by itself, and what is unknown or
malformed becomes an event of kind `ignored` with a name, which is counted. Nothing is dropped because of its neighbour.
"""

import hashlib
import hmac
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

SIGNATURE_HEADER = "x-hub-signature-256"

Kind = Literal["message", "edit", "revoke", "reaction", "status", "echo", "moved", "handover", "ignored"]


@dataclass(frozen=True, kw_only=True)
class Who:
    """A person as a channel names them. On Messenger and Instagram only `user_id` (PSID, IGSID)."""

    phone: str = ""
    user_id: str = ""
    """On WhatsApp the business-scoped user id."""

    def __bool__(self) -> bool:
        return bool(self.phone or self.user_id)


@dataclass(frozen=True, kw_only=True)
class Media:
    """A picture that came with a message: `ref` is an id (WhatsApp) or a URL."""

    ref: str
    mime: str = ""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened. `key` is its identity for deduplication; empty where doing it twice does no harm."""

    kind: Kind
    key: str = ""
    who: Who = Who()
    time: float = 0.0
    """Seconds since 1970, by Meta's clock; 0 if not given."""
    message_id: str = ""
    """The message that this is, or that it is about."""
    text: str = ""
    media: tuple[Media, ...] = ()
    name: str = ""
    """Of what cannot be read (`audio` …), of a status, or of what is ignored."""
    order: float = 0.0
    """Of two edits of a message, the later has the larger one."""
    token: str = ""
    """Ours, which came back with a status or an echo."""
    new: Who = Who()
    """Who `who` has become, of kind `moved`."""
    ours: bool = False
    """Of a handover: to us."""


def ignored(name: str) -> Event:
    return Event(kind="ignored", name=name)


def is_signed(body: bytes, header: str, secret: str) -> bool:
    """Whether `header` (`sha256=…`) is the HMAC of the bytes as received. Compared in constant time."""
    expected = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(f"sha256={expected}".encode(), header.strip().encode())


def challenge_of(query: Mapping[str, str], verify_token: str) -> str | None:
    """What answers Meta's verification request, or None where the request is not a valid one."""
    given = query.get("hub.verify_token", "")
    if query.get("hub.mode") != "subscribe" or not hmac.compare_digest(given.encode(), verify_token.encode()):
        return None
    return query.get("hub.challenge") or None


def each(items: Any, read: Callable[[dict[str, Any]], Iterable[Event]], what: str) -> Iterator[Event]:
    """The events of all `items`; one that cannot be read is ignored by name, the others are not."""
    for item in items if isinstance(items, list) else []:
        try:
            yield from list(read(item))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
            yield ignored(f"malformed {what}")


def text_of(value: Any) -> str:
    """A string, or "" for anything else, without the lone surrogates that JSON allows."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def id_of(value: Any) -> str:
    """An id. Raises ValueError where it is none."""
    if not (found := text_of(value)):
        raise ValueError("no id")
    return found


def seconds_of(value: Any) -> float:
    """A time or a number. Raises ValueError or OverflowError where it is none."""
    if not math.isfinite(number := float(value)):
        raise ValueError("no number")
    return number


def table_of(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def short_name(value: Any) -> str:
    """A name from outside as the name of a count: short, one line."""
    return "".join(c if c.isalnum() or c in "_- " else "?" for c in str(value))[:40]
