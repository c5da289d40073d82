"""`herd serve --check`: what a server with these options would expose, and what not, without starting it.

Each finding is fine, worth a look, or dangerous; with one that is dangerous the command fails, so that it can stand in
front of a start. The routes are those of the application's own table. Left out: what a proxy or a firewall in front of
the server does, and whether a certificate is still valid for its name.
"""

import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from starlette.routing import Route

from herd.config import ServeConfig
from herd.errors import HerdError
from herd.model.formats.source import find_source
from herd.serve.api.app import MAX_BODY_BYTES, create_app
from herd.serve.channels.config import ChannelsConfig
from herd.serve.keys import VARIABLE, Keys
from herd.serve.loading import named_paths
from herd.serve.messages import MAX_MEDIA_BYTES
from herd.serve.middleware import is_loopback
from herd.serve.models import LocalModels

Level = Literal["ok", "look", "danger"]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Level
    what: str
    detail: str


def report(findings: Sequence[Finding]) -> str:
    """The findings as lines, with a summary at the end."""
    lines = [f"{one.level:<7} {one.what:<9} {one.detail}" for one in findings]
    counts = {level: sum(one.level == level for one in findings) for level in ("danger", "look")}
    return "\n".join([*lines, f"{counts['danger']} dangerous, {counts['look']} to look at"])


def fail_on_danger(findings: Sequence[Finding]) -> None:
    """Raises HerdError where something is dangerous."""
    if found := [one.what for one in findings if one.level == "danger"]:
        raise HerdError(f"--check: dangerous: {', '.join(found)}: change the options that the lines above name")


def find_exposure(
    models: Sequence[str],
    server: ServeConfig,
    *,
    address: str,
    keys: Keys | None,
    guard: Path | None,
    prompt_guard: Path | None,
    channels: ChannelsConfig | None,
    max_num_seqs: int,
) -> Iterator[Finding]:
    """What the options say; `address` is what the host's name means."""
    is_open = not is_loopback(address)
    yield from _host(server, keys, address, is_open=is_open)
    yield from _keys(server, keys, is_open=is_open)
    yield from _routes()
    yield from _models(models, server)
    if server.cors_origins:
        plain = [origin for origin in server.cors_origins if not origin.startswith("https://")]
        level: Level = "look" if plain else "ok"
        yield Finding(level, "cors", f"pages of {', '.join(server.cors_origins)} may ask from browsers")
    else:
        yield Finding("ok", "cors", "no page of another site may ask")
    if server.picture_hosts:
        hosts = ", ".join(server.picture_hosts)
        yield Finding("look", "pictures", f"fetched for whoever asks from {hosts}, at public addresses; no videos")
    else:
        yield Finding("ok", "pictures", "nothing is fetched: pictures and videos by address are refused")
    judged = [name for name, path in (("--guard", guard), ("--prompt-guard", prompt_guard)) if path]
    if judged:
        seconds = f"{server.guard_timeout_s:g} s for a verdict, then nothing is shown"
        yield Finding("ok", "guards", f"{' and '.join(judged)}; {seconds}")
    reaches_people = is_open or channels is not None
    if not guard:
        yield Finding("look" if reaches_people else "ok", "guards", "no --guard: nothing judges what is answered")
    if not prompt_guard:
        yield Finding("look" if reaches_people else "ok", "guards", "no --prompt-guard: nothing looks for injections")
    yield Finding(
        "ok",
        "limits",
        f"{max_num_seqs} answers at a time, {server.max_queued_requests} requests wait; a body of "
        f"{MAX_BODY_BYTES // 2**20} MiB, a picture of {MAX_MEDIA_BYTES // 2**20} MiB",
    )
    yield from _audit(server, is_open=is_open)
    page = "open to all who reach it; it asks for the key" if keys else "open to all who reach it, and needs no key"
    yield Finding("ok", "page", page)
    if channels:
        names = ", ".join(channels.accounts)
        yield Finding("ok", "channels", f"{names}: webhooks in front of keys and hosts, each signed by Meta")
    else:
        yield Finding("ok", "channels", "none")
    if is_open and os.geteuid() == 0:
        yield Finding("look", "process", "it would run as root: give it a user of its own (docs/operate.md)")


def _host(server: ServeConfig, keys: Keys | None, address: str, *, is_open: bool) -> Iterator[Finding]:
    if not is_open:
        yield Finding("ok", "host", f"{server.host}: this machine alone")
    elif keys is None and not server.without_keys:
        yield Finding("danger", "host", f"{server.host} is open to others without keys: such a server does not start")
    elif keys is None:
        yield Finding("danger", "host", f"{server.host} is open to others, and --without-keys asks nobody for a key")
    else:
        yield Finding("ok", "host", f"{server.host} ({address}): open to others, who need a key")
    if server.tls:
        certificate, key = server.tls
        if _others_read(key):
            yield Finding("danger", "tls", f"{key} can be read by others: chmod 600 {key}")
        yield Finding("ok", "tls", f"HTTPS with {certificate}")
    elif is_open:
        yield Finding("look", "tls", "plain HTTP: keys and texts can be read on the way, unless a proxy ends TLS")
    else:
        yield Finding("ok", "tls", "plain HTTP on this machine")


def _keys(server: ServeConfig, keys: Keys | None, *, is_open: bool) -> Iterator[Finding]:
    if keys is None:
        yield Finding("ok", "keys", "none: all who reach it may ask for everything, /metrics included")
        return
    for key in keys.keys:
        limits = [
            f"{bucket.per_minute:g} {what} a minute"
            for bucket, what in ((key.requests, "requests"), (key.tokens, "tokens"))
            if bucket
        ]
        level: Level = "look" if is_open and not limits else "ok"
        scopes = ", ".join(sorted(key.scopes))
        yield Finding(level, "keys", f"{key.name}: {scopes}; {', '.join(limits) or 'no limits'}")
    if server.api_keys and _others_write(server.api_keys):
        yield Finding("danger", "keys", f"{server.api_keys} can be written by others: chmod 600 {server.api_keys}")
    if any(key.name == VARIABLE for key in keys.keys):
        yield Finding("look", "keys", f"{VARIABLE} is for everything, and other processes of this user can read it")


def _routes() -> Iterator[Finding]:
    by_tag: defaultdict[str, list[str]] = defaultdict(list)
    for route in create_app(LocalModels([])).routes:
        assert isinstance(route, Route)
        for tag in getattr(route, "tags", None) or ["closed to all"]:
            by_tag[tag].append(f"{'/'.join(sorted((route.methods or set()) - {'HEAD'}))} {route.path}")
    for tag, paths in by_tag.items():
        who = "without a key" if tag == "public" else f"scope {tag}"
        yield Finding("ok", "routes", f"{who}: {', '.join(paths)}")


def _models(models: Sequence[str], server: ServeConfig) -> Iterator[Finding]:
    if server.upstream:
        url = urlsplit(server.upstream)
        is_plain = url.scheme == "http" and url.hostname != "localhost" and not is_loopback(url.hostname or "")
        detail = f"{server.upstream} answers, and must be reachable by this server alone"
        yield Finding("look" if is_plain else "ok", "models", f"{detail}{'; plain HTTP to it' if is_plain else ''}")
        return
    paths = named_paths(models)
    for name, path in paths.items():
        try:
            yield Finding("ok", "models", f"{name}: {path} ({find_source(path).kind})")
        except HerdError as error:
            yield Finding("danger", "models", f"{name}: {error}")
    if len(paths) > 1 and server.memory is None:
        yield Finding("look", "models", "no --memory: every model that is asked for stays in memory")


def _audit(server: ServeConfig, *, is_open: bool) -> Iterator[Finding]:
    if server.audit_log is None:
        yield Finding("look" if is_open else "ok", "audit", "no --audit-log: nothing says afterwards who asked")
    elif server.audit_contents:
        yield Finding("look", "audit", f"{server.audit_log}, with what is asked and answered: personal data")
    else:
        yield Finding("ok", "audit", f"{server.audit_log}, without contents")


def _others_read(path: Path) -> bool:
    return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


def _others_write(path: Path) -> bool:
    return bool(path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH))
