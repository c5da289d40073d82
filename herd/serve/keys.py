"""API keys: who may ask, for what, and how much. Only their SHA-256 is read and kept.

A key is random and long, so that its plain hash cannot be guessed back. Limits are token buckets that hold a minute's
worth: what was saved up may be used at once.
"""

import hashlib
import hmac
import os
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.errors import HerdError, unknown

SCOPES = ("generate", "embeddings", "moderations", "tokenize", "models", "metrics")
"""What a key may be for: the tags of the server's routes."""
DEFAULT_SCOPES = frozenset(SCOPES) - {"metrics"}
VARIABLE = "HERD_API_KEY"
MIN_CHARS = 20
"""Of a key in the environment."""
FIELDS = ("name", "sha256", "scopes", "requests_per_minute", "tokens_per_minute")


class Bucket:
    """At most so much a minute; it begins full. `now` is a clock in seconds."""

    def __init__(self, per_minute: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self._most, self._now = float(per_minute), now
        self._level, self._at = self._most, now()

    @property
    def per_minute(self) -> float:
        return self._most

    @property
    def wait_s(self) -> float:
        """Seconds until there is something to take."""
        self._fill()
        return max(0.0, 1 - self._level) * 60 / self._most

    def take(self, amount: float) -> None:
        """Take so much, also where that is more than there is: then it takes longer to fill again."""
        self._fill()
        self._level -= amount

    def _fill(self) -> None:
        now = self._now()
        self._level = min(self._most, self._level + (now - self._at) * self._most / 60)
        self._at = now


@dataclass(frozen=True, kw_only=True, eq=False)
class Key:
    """One key's rights. Whoever has it is one caller, wherever they ask from."""

    name: str
    digest: bytes
    """SHA-256 of the key."""
    scopes: frozenset[str] = DEFAULT_SCOPES
    requests: Bucket | None = None
    tokens: Bucket | None = None
    """Tokens of prompts and of answers together. They are known once they were used, so that what runs already may
    overdraw the limit, and the next request waits for longer."""


@dataclass(frozen=True)
class Keys:
    """All keys of a server."""

    keys: Sequence[Key] = field(default=())

    def find(self, secret: bytes) -> Key | None:
        """The key with this secret; takes as long whether there is one or not, and whichever it is."""
        digest, found = hashlib.sha256(secret).digest(), None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def load_keys(path: Path | None) -> Keys | None:
    """Those of the file and of the environment's HERD_API_KEY; None where there is neither. Raises HerdError."""
    keys = read_keys(path) if path else []
    if secret := os.environ.get(VARIABLE):
        if len(secret) < MIN_CHARS:
            raise HerdError(f"{VARIABLE} has {len(secret)} characters: a key needs {MIN_CHARS}, all random")
        keys.append(Key(name=VARIABLE, digest=hashlib.sha256(secret.encode()).digest(), scopes=frozenset(SCOPES)))
    if len({key.digest for key in keys}) < len(keys):
        raise HerdError(f"{path or VARIABLE}: the same key is there twice: give each caller one of their own")
    return Keys(keys) if keys else None


def read_keys(path: Path) -> list[Key]:
    """The keys of a TOML file: a table `[[key]]` for each. Raises HerdError where it is none."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HerdError(f"{path} cannot be read as a file of keys: {error}") from error
    rows = table.get("key")
    if (
        set(table) != {"key"}
        or not isinstance(rows, list)
        or not rows
        or not all(isinstance(one, dict) for one in rows)
    ):
        raise HerdError(f"{path} has no keys: it must consist of tables, each headed [[key]]")
    keys = [_key(row, f"{path}: key {number}") for number, row in enumerate(rows, start=1)]
    if len({key.name for key in keys}) < len(keys):
        raise HerdError(f"{path}: two keys have one name")
    return keys


def _key(row: dict[str, Any], where: str) -> Key:
    for given in row:
        if given not in FIELDS:
            raise HerdError(f"{where}: {unknown('field', given, FIELDS)}")
    name, digest = row.get("name"), row.get("sha256")
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 64:
        raise HerdError(f"{where}: name={name!r} must be a text of 1 to 64 characters")
    where = f"{where} ({name})"
    try:
        data = bytes.fromhex(digest) if isinstance(digest, str) else b""
    except ValueError:
        data = b""
    if len(data) != 32:
        raise HerdError(f"{where}: sha256 must be 64 hexadecimal digits: printf %s KEY | sha256sum")
    scopes = row.get("scopes", sorted(DEFAULT_SCOPES))
    if not isinstance(scopes, list) or not scopes:
        raise HerdError(f"{where}: scopes={scopes!r} must be a list of {', '.join(SCOPES)}")
    for scope in scopes:
        if scope not in SCOPES:
            raise HerdError(f"{where}: {unknown('scope', str(scope), SCOPES)}")
    buckets: dict[str, Bucket | None] = {}
    for limit in ("requests_per_minute", "tokens_per_minute"):
        value = row.get(limit)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**12):
            raise HerdError(f"{where}: {limit}={value!r} must be a whole number of at least 1")
        buckets[limit] = None if value is None else Bucket(value)
    requests, tokens = buckets.values()
    return Key(name=name, digest=data, scopes=frozenset(scopes), requests=requests, tokens=tokens)
