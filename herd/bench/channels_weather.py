"""What a storm of webhooks consists of (herd.bench.channels): messages, what is done to them, and noise, in batches."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from herd.serve.channels.config import TRAITS, Channel
from herd.serve.channels.double import GraphDouble

STRANGER = "19990000000"
"""Gets messages of ours, as echoes tell, and never writes."""
PICTURE = "1003383421387256"
"""Its id at the double."""
PLAIN = "text"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One event, where it stands in time, and whether it is in `standby`."""

    at: float
    content: dict[str, Any]
    where: str = ""


class Weather:
    """The deliveries of a storm."""

    def __init__(self, channel: Channel, double: GraphDouble, *, messages: int, people: int, seed: int) -> None:
        self.channel, self.double, self.random = channel, double, random.Random(f"{channel} {seed}")
        self.deleted = set[str]()
        self.plain = set[str]()
        """Tokens of messages that are text and nothing else; the others are pictures with words, buttons, places …"""
        names = [f"1650{n:07}" for n in range(people)]
        # On WhatsApp every third is known by an id alone.
        self.people = [f"US.{name}" if channel == "whatsapp" and n % 3 == 0 else name for n, name in enumerate(names)]
        items = [item for number in range(messages) for item in self._items(number)]
        items.sort(key=lambda item: item.at)
        self.deliveries = self._batches(items)

    def _items(self, number: int) -> list[Item]:
        rng, who = self.random, self.random.choice(self.people)
        mid, token = f"{'wamid' if self.channel == 'whatsapp' else 'mid'}.{number}", f"m{number};"
        cap = TRAITS[self.channel].cap
        long = rng.random() < 0.01
        text = " ".join([token, *(f"w{number}.{k}" for k in range(cap // 8))]) if long else token
        at = number + rng.uniform(0, 20)
        items = [Item(at=at, content=self._message(who, mid, text, token))]
        draw = rng.random()
        if draw < 0.06 and self.channel != "instagram":
            items.append(Item(at=at + rng.uniform(-10, 10), content=self._edit(who, mid, f"{token} edited")))
        elif draw < 0.12:
            self.deleted.add(token)
            items.append(Item(at=at + rng.uniform(-10, 10), content=self._delete(who, mid)))
        elif draw < 0.30:
            items.append(Item(at=at + rng.uniform(-10, 10), **self._noise(who, mid, number)))
        return items

    def _wa(self, who: str, kind: str, content: Any, mid: str) -> dict[str, Any]:
        ids = {"from": who} if who.isdigit() else {"from": "", "from_user_id": who}
        return {**ids, "id": mid, "timestamp": str(int(time.time())), "type": kind, kind: content}

    def _event(self, who: str, content: dict[str, Any], *, echo: bool = False) -> dict[str, Any]:
        made: dict[str, Any] = self.double.event(self.channel, content, who=who, echo=echo)["entry"][0]["messaging"][0]
        return made

    def _message(self, who: str, mid: str, text: str, token: str) -> dict[str, Any]:
        """A message of any kind that is answered, with `text` in it; seven in ten are text."""
        kinds: dict[str, dict[str, Any]]
        if self.channel == "whatsapp":
            kinds = {
                PLAIN: {"body": text},
                "image": {"id": PICTURE, "mime_type": "image/png", "sha256": "s", "caption": text},
                "button": {"text": text, "payload": "p"},
                "interactive": {"type": "button_reply", "button_reply": {"id": "b", "title": text}},
                "location": {"latitude": 48.1, "longitude": 11.5, "name": text},
                "document": {
                    "id": "2",
                    "mime_type": "application/pdf",
                    "sha256": "s",
                    "filename": "a.pdf",
                    "caption": text,
                },
            }
        else:
            files = {"image": "image", "voice": "audio", "share": "fallback"}
            url = f"{urlsplit(self.double.accounts[self.channel].graph)._replace(path='').geturl()}/media/{PICTURE}"
            kinds = {PLAIN: {"message": {"mid": mid, "text": text}}}
            for name, kind in files.items():
                attachment = {"type": kind, "payload": {"url": url}}
                kinds[name] = {"message": {"mid": mid, "text": text, "attachments": [attachment]}}
            kinds["quick reply"] = {"message": {"mid": mid, "text": text, "quick_reply": {"payload": "p"}}}
            kinds["postback"] = {"postback": {"mid": mid, "title": text, "payload": "p"}}
        kind = PLAIN if self.random.random() < 0.7 else self.random.choice(list(kinds)[1:])
        if kind == PLAIN:
            self.plain.add(token)
        if self.channel == "whatsapp":
            return self._wa(who, kind, kinds[kind], mid)
        return self._event(who, kinds[kind])

    def _edit(self, who: str, mid: str, text: str) -> dict[str, Any]:
        if self.channel == "whatsapp":
            content = {"original_message_id": mid, "message": {"type": "text", "text": {"body": text}}}
            return self._wa(who, "edit", content, f"{mid}.edit")
        return self._event(who, {"message_edit": {"mid": mid, "text": text, "num_edit": 1}})

    def _delete(self, who: str, mid: str) -> dict[str, Any]:
        if self.channel == "whatsapp":
            return self._wa(who, "revoke", {"original_message_id": mid}, f"{mid}.revoke")
        return self._event(who, {"message": {"mid": mid, "is_deleted": True}})

    def _noise(self, who: str, mid: str, number: int) -> dict[str, Any]:
        """An event that is to be answered by nothing."""
        rng = self.random
        if self.channel == "whatsapp":
            names = ["sent", "delivered", "read", "failed"]
            status = {"id": mid, "status": rng.choice(names), "timestamp": "1750030073", "recipient_id": "1"}
            echo = {"from": "1", "to": STRANGER, "id": f"{mid}.echo", "timestamp": "1750030073", "type": "text",
                    "text": {"body": "ours"}}  # fmt: skip
            moved = {"type": "user_changed_number", "wa_id": f"1651{who[-7:]}", "body": "moved"}
            handover = {"new_owner": "another"}
            return rng.choice(
                [
                    {"content": self._wa(who, "reaction", {"message_id": mid, "emoji": "👍"}, f"{mid}.reaction")},
                    {"content": self._wa(who, "unsupported", {"type": "poll"}, f"{mid}.unsupported")},
                    {"content": self._wa(who, "hologram", {"depth": 3}, f"{mid}.unknown")},
                    {"content": self._wa(who, "system", moved, f"{mid}.moved")},
                    {"content": {**self._wa(who, "text", {"body": "in a group"}, f"{mid}.g"), "group_id": "g"}},
                    {"content": {"id": f"{mid}.broken"}},
                    {"content": status, "where": "statuses"},
                    {"content": {"code": 130429, "title": "Rate limit hit"}, "where": "errors"},
                    {"content": echo, "where": "message_echoes"},
                    {"content": handover, "where": "messaging_handovers"},
                    {"content": {"event": "x"}, "where": "account_update"},
                ]
            )
        echo = self._event(STRANGER, {"message": {"mid": f"{mid}.echo", "text": "ours", "is_echo": True}}, echo=True)
        passed = {"pass_thread_control": {"new_owner_app_id": "1"}}
        return rng.choice(
            [
                {"content": self._event(who, {"reaction": {"reaction": "love", "action": "react", "mid": mid}})},
                {"content": self._event(who, {"message": {"mid": f"{mid}.u", "is_unsupported": True}})},
                {"content": self._event(who, {"hologram": {"depth": number}})},
                {"content": self._event(who, {"read": {"watermark": 1}})},
                {"content": self._event(who, {"delivery": {"mids": [mid], "watermark": 1}})},
                {"content": self._event(who, {"optin": {"ref": "r"}})},
                {"content": self._event(who, {"referral": {"ref": "r", "source": "SHORTLINK"}})},
                {"content": self._event(who, {"message": {"mid": f"{mid}.s", "text": "not ours"}}), "where": "standby"},
                {"content": self._event(STRANGER, passed)},
                {"content": self._event(STRANGER, {"take_thread_control": {"previous_owner_app_id": "1"}})},
                {"content": {"sender": 5}},
                {"content": {"field": "comments", "value": {}}, "where": "changes"},
                {"content": echo},
            ]
        )

    def _batches(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        """Deliveries of up to three entries, of three changes, of five events."""
        rng, made, at = self.random, [], 0
        while at < len(items):
            entries = []
            for _ in range(rng.choice([1, 1, 1, 2, 3])):
                changes = []
                for _ in range(rng.choice([1, 1, 2, 3]) if self.channel == "whatsapp" else 1):
                    size = rng.choice([1, 1, 1, 2, 5])
                    changes.append(list(items[at : at + size]))
                    at += size
                entries.append(changes)
            made.append(self._delivery(entries))
        return made

    def _delivery(self, entries: list[list[list[Item]]]) -> dict[str, Any]:
        account = self.double.accounts[self.channel].id
        made: list[dict[str, Any]] = []
        for changes in entries:
            if self.channel == "whatsapp":
                made.append(
                    {"id": "102290129340398", "changes": [one for items in changes for one in self._changes(items)]}
                )
                continue
            entry: dict[str, Any] = {"id": account, "time": 1}
            for item in (item for items in changes for item in items):
                entry.setdefault(item.where or "messaging", []).append(item.content)
            made.append(entry)
        names = {"whatsapp": "whatsapp_business_account", "messenger": "page", "instagram": "instagram"}
        return {"object": names[self.channel], "entry": made}

    def _changes(self, items: list[Item]) -> list[dict[str, Any]]:
        # Whole, as pywa needs it: the control must fail at the storm, and not at a field that Meta always sends.
        metadata = {"display_phone_number": "15550783881", "phone_number_id": self.double.accounts["whatsapp"].id}
        values: dict[str, list[dict[str, Any]]] = {}
        for item in items:
            values.setdefault(item.where or "messages", []).append(item.content)
        fields = {
            "messages": "messages", "statuses": "messages", "errors": "messages",
            "message_echoes": "smb_message_echoes",
        }  # fmt: skip
        shared = {"messaging_product": "whatsapp", "metadata": metadata}
        made = []
        for key, listed in values.items():
            senders = dict.fromkeys(one.get("from") or one.get("from_user_id", "") for one in listed)
            contacts = {"contacts": [_contact(one) for one in senders if one]} if key == "messages" else {}
            made.append({"field": fields.get(key, key), "value": {**shared, **contacts, key: listed}})
        return made


def _contact(who: str) -> dict[str, Any]:
    ids = {"wa_id": who, "user_id": f"DE.{who}"} if who.isdigit() else {"user_id": who}
    return {"profile": {"name": "Someone"}, **ids}
