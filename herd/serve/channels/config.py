"""channels.toml: which accounts are answered, and how. Secrets are in the environment, never in the file.

store = "channels.sqlite"          # relative to the file

[whatsapp]
phone_number_id = "106540352242922"

[messenger]
page_id = "…"

[instagram]
account_id = "…"
"""

import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from herd.core.files import read_text
from herd.errors import HerdError, unknown
from herd.serve.channels import messenger, whatsapp
from herd.serve.channels.events import Event
from herd.serve.channels.text import Unit

Channel = Literal["whatsapp", "messenger", "instagram"]
GRAPH = "https://graph.facebook.com/v25.0"
GRAPH_INSTAGRAM = "https://graph.instagram.com/v25.0"


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What differs between the channels."""

    id_field: str
    graph: str
    media_hosts: tuple[str, ...]
    media_bytes: int
    """Most bytes of a picture."""
    cap: int
    unit: Unit
    part_gap_s: float
    """Between two parts to one person."""


TRAITS: dict[Channel, Traits] = {
    "whatsapp": Traits(
        id_field="phone_number_id", graph=GRAPH, media_hosts=("lookaside.fbsbx.com",), media_bytes=5 * 2**20,
        cap=whatsapp.CAP, unit="characters", part_gap_s=6.0,  # the pair rate: one message in six seconds
    ),
    "messenger": Traits(
        id_field="page_id", graph=GRAPH, media_hosts=(".fbcdn.net", ".fbsbx.com"), media_bytes=8 * 2**20,
        cap=messenger.MESSENGER_CAP, unit="characters", part_gap_s=0.5,
    ),
    "instagram": Traits(
        id_field="account_id", graph=GRAPH_INSTAGRAM, media_hosts=(".fbcdn.net", ".fbsbx.com", ".cdninstagram.com"),
        media_bytes=8 * 2**20, cap=messenger.INSTAGRAM_CAP, unit="bytes", part_gap_s=0.5,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Account:
    """One account of one channel, with its secrets."""

    channel: Channel
    id: str
    graph: str
    media_hosts: tuple[str, ...]
    app_id: str
    app_secret: str = field(repr=False)
    access_token: str = field(repr=False)
    verify_token: str = field(repr=False)

    @property
    def traits(self) -> Traits:
        return TRAITS[self.channel]

    def parse(self, payload: Any) -> Iterator[Event]:
        if self.channel == "whatsapp":
            return whatsapp.parse(payload, self.id)
        return messenger.parse(payload, self.id, instagram=self.channel == "instagram", app_id=self.app_id)


class Words(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message that is one of these, in any case and with marks around it, is a command."""

    opt_out: tuple[str, ...] = ("stop", "unsubscribe", "stopp", "arrêt", "parar", "alto", "إيقاف", "रोकें")
    opt_in: tuple[str, ...] = ("start", "subscribe")
    handover: tuple[str, ...] = ("human", "agent")
    forget: tuple[str, ...] = ("forget me",)
    """All that is stored of the person is deleted."""


class Texts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is said without the model."""

    opted_out: str = "You will get no more messages from us. Write START to begin again."
    opted_in: str = "Welcome back."
    handed_over: str = "A person will answer you here."
    forgotten: str = "Everything that was stored of this conversation has been deleted."
    limited: str = "You have sent many messages. Please try again later."
    unreadable: str = "I can read text and pictures only."
    failed: str = "Something went wrong, so I have no answer. Please try again."


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds for all channels."""

    store: str = "channels.sqlite"
    """File of the inbox; relative to channels.toml."""
    system: str = ""
    """System message of every conversation."""
    max_tokens: int = 1024
    """Longest answer, in tokens."""
    join_s: float = 2.0
    """Messages of a person that come within so long are answered together."""
    max_join_s: float = 20.0
    """But none waits longer."""
    max_answers: int = 8
    """People who are answered at the same time."""
    max_history: int = 40
    """Earlier messages that the model reads."""
    retention_days: float = 30.0
    """What is older is deleted."""
    messages_per_hour: int = 60
    """Of one person; further ones get no answer."""
    messages_per_day: int = 300
    handover_hours: float = 24.0
    """How long a person of ours has a conversation that was handed over; 0: until it is released."""
    unknown_wait_s: float = 60.0
    """How long a part that may not have been sent waits for a receipt before the parts after it are given up."""
    words: Words = Words()
    texts: Texts = Texts()

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_tokens", 1, 10**6), ("join_s", 0, 60), ("max_join_s", 0, 600), ("max_answers", 1, 1000),
            ("max_history", 0, 10**4), ("retention_days", 1, 3650), ("messages_per_hour", 1, 10**6),
            ("messages_per_day", 1, 10**7), ("handover_hours", 0, 10**4), ("unknown_wait_s", 0, 86400),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise HerdError(f"{name} = {getattr(self, name)} must be from {low} to {high}")


@dataclass(frozen=True, kw_only=True)
class ChannelsConfig:
    """A channels.toml, read and checked."""

    options: Options
    accounts: dict[Channel, Account]
    store: Path


def read_config(path: Path) -> ChannelsConfig:
    """Read `path`. Raises HerdError, which names the field and what to set, where something is wrong or missing."""
    try:
        document = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise HerdError(f"{path} is not valid TOML: {error}") from None
    sections = {name: document.pop(name) for name in TRAITS if name in document}
    if not sections:
        raise HerdError(f"{path} has no account: add [{'], ['.join(TRAITS)}] or several of them")
    _check_names(path, document, (one.name for one in msgspec.structs.fields(Options)), "option")
    for name, kind in (("words", Words), ("texts", Texts)):
        if isinstance(document.get(name), dict):
            _check_names(path, document[name], (one.name for one in msgspec.structs.fields(kind)), f"field of [{name}]")
    try:
        options = msgspec.convert(document, Options, strict=True)
    except (msgspec.ValidationError, ValueError) as error:
        raise HerdError(f"{path}: {error}") from None
    accounts = {name: _account(path, name, section) for name, section in sections.items()}
    store = path.resolve().parent / options.store
    if not store.parent.is_dir():
        raise HerdError(f"{path}: store = {options.store!r}: the folder {store.parent} does not exist")
    return ChannelsConfig(options=options, accounts=accounts, store=store)


def _check_names(path: Path, given: dict[str, Any], known: Iterable[str], what: str) -> None:
    names = set(known)
    for name in given:
        if name not in names:
            raise HerdError(f"{path}: {unknown(what, name, names)}")


def _account(path: Path, channel: Channel, section: Any) -> Account:
    here, traits = f"{path}: [{channel}]", TRAITS[channel]
    secrets = [one.name for one in fields(Account) if one.name.endswith(("_secret", "_token"))]
    texts = [traits.id_field, "graph", "app_id", *(f"{name}_variable" for name in secrets)]
    if not isinstance(section, dict):
        raise HerdError(f"{here} must be a table")
    for name in secrets:
        if name in section:
            raise HerdError(
                f"{here}: {name} does not belong into a file: put it into an environment variable and name that in "
                f"{name}_variable"
            )
    _check_names(path, section, [*texts, "media_hosts"], f"field of [{channel}]")
    for name in texts:
        if not isinstance(section.get(name, ""), str):
            raise HerdError(f"{here}: {name} = {section[name]!r} must be a text, in quotation marks")
    account_id = section.get(traits.id_field, "")
    if not re.fullmatch(r"[0-9]{1,40}", account_id):
        raise HerdError(f"{here}: {traits.id_field} = {account_id!r} must be the number that Meta's dashboard shows")
    hosts = section.get("media_hosts", list(traits.media_hosts))
    if not isinstance(hosts, list) or not all(
        isinstance(host, str) and re.fullmatch(r"\.?[a-z0-9.-]+", host) for host in hosts
    ):
        raise HerdError(
            f"{here}: media_hosts = {hosts!r} must be a list of host names; one that begins with a dot has subdomains"
        )
    values = {}
    for name in secrets:
        variable = section.get(f"{name}_variable", f"HERD_{channel}_{name}".upper())
        values[name] = os.environ.get(variable, "").strip()
        if not values[name]:
            raise HerdError(
                f"{here}: the environment variable {variable} is not set: put the {name.replace('_', ' ')} into it"
            )
    return Account(
        channel=channel, id=account_id, graph=_graph(here, section.get("graph", traits.graph)),
        media_hosts=tuple(hosts), app_id=section.get("app_id", ""), **values,
    )  # fmt: skip


def _graph(here: str, url: str) -> str:
    """The address of the Graph API without a slash at its end. Plain HTTP is for a simulator on this machine alone."""
    parts = urlsplit(url)
    local = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if not parts.hostname or parts.scheme not in ("http", "https") or parts.query or parts.username:
        raise HerdError(f"{here}: graph = {url!r} must be an address like {GRAPH}")
    if parts.scheme == "http" and not local:
        raise HerdError(f"{here}: graph = {url!r} would send the access token unencrypted: use https")
    return url.rstrip("/")
