"""How a server is reached and by whom. The options of `herd serve`."""

import re
from dataclasses import dataclass
from pathlib import Path

from herd.errors import HerdError


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Options of the server, beside those of its engine."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 admits other machines."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    upstream: str = ""
    """Address of another OpenAI-compatible server, such as http://127.0.0.1:8001/v1, that answers in place of models of
    our own, behind the same keys, limits, guards and channels; its key is in HERD_UPSTREAM_KEY."""
    upstream_timeout_s: float = 120.0
    """Longest silence of that server, in seconds, before a request is given up."""
    memory: int | None = None
    """Bytes for the weights and caches of all models in memory, such as 16G: to open another one, those that were not
    used for longest are closed; no limit if not given."""
    max_queued_requests: int = 128
    """Most requests that are queued; further ones are refused with 429."""
    api_keys: Path | None = None
    """File of the keys that may ask, as TOML with their SHA-256; a key in HERD_API_KEY is one more."""
    without_keys: bool = False
    """Answer other machines although no key is asked for, as where a proxy checks them."""
    tls: tuple[Path, Path] | None = None
    """Files of the certificate chain and of its private key: the server then speaks HTTPS."""
    cors_origins: tuple[str, ...] = ()
    """Origins, such as https://chat.example, whose pages may ask from a browser."""
    picture_hosts: tuple[str, ...] = ()
    """Hosts, such as images.example.org or .example.org for all below it, whose pictures are fetched over HTTPS where a
    request names their address; without any, nothing is fetched."""
    audit_log: Path | None = None
    """File that gets a line of JSON for each request, without contents."""
    audit_contents: bool = False
    """Write requests and answers into the audit log too."""
    channels: Path | None = None
    """File that names accounts of WhatsApp, Messenger and Instagram to answer on (docs/channels.md)."""
    guard_timeout_s: float = 60.0
    """Seconds that a guard may take for a verdict; what it has not judged by then is not shown. Long messages on a slow
    processor may need more."""
    check: bool = False
    """Say what would be exposed and what not, and do not start; fails where something is dangerous."""
    drain_s: float = 30.0
    """Seconds that running answers may take to end after SIGTERM."""

    def __post_init__(self) -> None:
        if not 0 < self.guard_timeout_s <= 86_400:
            raise HerdError(f"--guard-timeout-s {self.guard_timeout_s} must be above 0, and 86400 at most")
        if not 0 < self.upstream_timeout_s <= 86_400:
            raise HerdError(f"--upstream-timeout-s {self.upstream_timeout_s} must be above 0, and 86400 at most")
        if self.upstream and self.memory is not None:
            raise HerdError("--memory is for models of this server: leave it out with --upstream")
        if self.memory is not None and self.memory < 1:
            raise HerdError(f"--memory {self.memory} must be at least 1")
        if self.max_queued_requests < 0:
            raise HerdError(f"--max-queued-requests {self.max_queued_requests} must not be negative")
        if not 0 <= self.drain_s <= 86_400:
            raise HerdError(f"--drain-s {self.drain_s} must be in 0 to 86400")
        if self.audit_contents and self.audit_log is None:
            raise HerdError("--audit-contents without --audit-log: name a file")
        for host in self.picture_hosts:
            if not re.fullmatch(r"\.?[a-z0-9-]+(\.[a-z0-9-]+)+", host) or host.rpartition(".")[2].isdigit():
                raise HerdError(
                    f"--picture-hosts {host!r} must be a host's name in small letters, such as img.example.org"
                )
        for origin in self.cors_origins:
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or not rest or "/" in rest or "*" in rest:
                raise HerdError(f"--cors-origins {origin!r} must be an origin, such as https://chat.example")
