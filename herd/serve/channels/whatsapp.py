"""WhatsApp Cloud API: webhooks to events, and the bodies of requests.

A sender is known by a phone number, by a business-scoped user id, or by both; `from` and `wa_id` may be absent or "".
Formats: https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/reference/messages
Left out: groups, calls, flows, templates. pywa's types are not used: they read the first message of a delivery alone,
and need a client and a `user_id` in each contact.
"""

import re
from collections.abc import Iterator
from typing import Any

from herd.serve.channels.events import (
    Event,
    Media,
    Who,
    each,
    id_of,
    ignored,
    seconds_of,
    short_name,
    table_of,
    text_of,
)

CAP = 4096
"""Characters of a text message."""
UNREADABLE = ("audio", "video", "document", "sticker", "contacts", "order")
"""Messages that a model of text and pictures cannot read; they get an answer that says so."""


def parse(payload: Any, account: str) -> Iterator[Event]:
    """The events of a delivery to the phone number id `account`."""
    payload = table_of(payload)
    if payload.get("object") != "whatsapp_business_account":
        yield ignored(f"object {short_name(payload.get('object'))}")
        return

    def entry(one: dict[str, Any]) -> Iterator[Event]:
        return each(one["changes"], change, "change")

    def change(one: dict[str, Any]) -> Iterator[Event]:
        field, value = one.get("field"), table_of(one["value"])
        number = text_of(table_of(value.get("metadata")).get("phone_number_id"))
        if field in ("messages", "smb_message_echoes", "messaging_handovers") and number not in ("", account):
            yield ignored("another account")
        elif field == "messages":
            names = _contacts(value.get("contacts"))
            yield from each(value.get("messages"), lambda message: _message(message, names), "message")
            yield from each(value.get("statuses"), _status, "status")
            yield from each(value.get("errors"), lambda error: [ignored(f"error {short_name(error['code'])}")], "error")
        elif field == "smb_message_echoes":
            yield from each(value.get("message_echoes"), _echo, "echo")
        else:
            yield ignored(f"field {short_name(field)}")

    yield from each(payload.get("entry"), entry, "entry")


def _contacts(contacts: Any) -> list[Who]:
    listed = contacts if isinstance(contacts, list) else []
    return [Who(phone=text_of(one.get("wa_id")), user_id=text_of(one.get("user_id"))) for one in map(table_of, listed)]


def _sender(message: dict[str, Any], contacts: list[Who]) -> Who:
    """Who sent a message: what it says, completed by the contact that it matches."""
    phone, user_id = text_of(message.get("from")), text_of(message.get("from_user_id"))
    for one in contacts:
        same = (phone and one.phone == phone) or (user_id and one.user_id == user_id)
        if same or (len(contacts) == 1 and not phone and not user_id):
            return Who(phone=phone or one.phone, user_id=user_id or one.user_id)
    if len(contacts) == 1:  # a phone number and a WhatsApp id may differ
        return Who(phone=phone, user_id=user_id or ("" if phone and contacts[0].phone else contacts[0].user_id))
    return Who(phone=phone, user_id=user_id)


def _message(message: dict[str, Any], contacts: list[Who]) -> Iterator[Event]:
    kind, message_id, time = text_of(message["type"]), id_of(message["id"]), seconds_of(message["timestamp"])
    who = _sender(message, contacts)
    if message.get("group_id"):
        yield ignored("group message")
    elif kind == "system":
        yield _system(message, message_id, time)
    elif kind == "reaction":
        reaction = message["reaction"]
        yield Event(kind="reaction", key=message_id, who=who, time=time, message_id=id_of(reaction["message_id"]))
    elif kind == "revoke":
        original = id_of(message["revoke"]["original_message_id"])
        yield Event(kind="revoke", key=message_id, who=who, time=time, message_id=original)
    elif kind == "edit":
        edit = message["edit"]
        text, media, name = _content(edit["message"])
        original = id_of(edit["original_message_id"])
        yield Event(
            kind="edit", key=message_id, who=who, time=time, message_id=original, text=text, media=media, name=name,
            order=time,
        )  # fmt: skip
    elif not who:
        yield ignored("message without a sender")
    else:
        text, media, name = _content(message)
        if not (text or media or name in UNREADABLE):
            yield ignored(f"message {name}")
            return
        yield Event(
            kind="message", key=message_id, who=who, time=time, message_id=message_id, text=text, media=media, name=name
        )


def _content(message: dict[str, Any]) -> tuple[str, tuple[Media, ...], str]:
    """Text, pictures, and the name of what can be neither."""
    kind = text_of(message["type"])
    body = table_of(message.get(kind))
    if kind == "text":
        return text_of(body["body"]), (), ""
    if kind == "image":
        return text_of(body.get("caption")), (Media(ref=id_of(body["id"]), mime=text_of(body.get("mime_type"))),), ""
    if kind == "button":
        return text_of(body["text"]), (), ""
    if kind == "interactive":
        reply = table_of(body.get(body["type"]))
        return text_of(reply.get("title")), (), short_name(f"interactive {body['type']}")
    if kind == "location":
        named = ", ".join(text_of(body[name]) for name in ("name", "address") if body.get(name))
        return f"[location {float(body['latitude']):.5f}, {float(body['longitude']):.5f} {named}]".strip(), (), ""
    # A document or a video may have words with it; they are read, and what they came with is named.
    return text_of(body.get("caption")) if kind in UNREADABLE else "", (), short_name(kind)


def _system(message: dict[str, Any], message_id: str, time: float) -> Event:
    system = message["system"]
    old_phone, old_id = text_of(message.get("from")), text_of(system.get("previous_user_id"))
    if system["type"] == "user_changed_user_id":
        body = re.search(r"(\S+\.\S+) to (\S+\.\S+)", text_of(system.get("body")))
        old_id = old_id or text_of(message.get("from_user_id")) or (body[1] if body else "")
        new_id = text_of(system.get("user_id")) or (body[2] if body else "")
        who, new = Who(phone=old_phone, user_id=old_id), Who(user_id=new_id)
    elif system["type"] in ("user_changed_number", "customer_changed_number"):
        phone = text_of(system.get("wa_id")) or text_of(system.get("new_wa_id"))
        who, new = Who(phone=old_phone, user_id=old_id), Who(phone=phone, user_id=text_of(system.get("user_id")))
    else:
        return ignored(f"system {short_name(system['type'])}")
    if not who or not new:
        return ignored("system without ids")
    return Event(kind="moved", key=message_id, who=who, time=time, new=new)


def _status(status: dict[str, Any]) -> Iterator[Event]:
    yield Event(
        kind="status", message_id=text_of(status["id"]), name=short_name(status["status"]),
        time=seconds_of(status["timestamp"]),
        who=Who(phone=text_of(status.get("recipient_id")), user_id=text_of(status.get("recipient_user_id"))),
        token=text_of(status.get("biz_opaque_callback_data")),
    )  # fmt: skip


def _echo(echo: dict[str, Any]) -> Iterator[Event]:
    """What a person wrote in the WhatsApp Business app, to one of ours."""
    if echo["type"] in ("edit", "revoke"):
        yield ignored(f"echo {echo['type']}")
        return
    text, _, name = _content(echo)
    who = Who(phone=text_of(echo.get("to")), user_id=text_of(echo.get("to_user_id")))
    yield Event(
        kind="echo",
        key=id_of(echo["id"]),
        message_id=id_of(echo["id"]),
        time=seconds_of(echo["timestamp"]),
        who=who,
        text=text,
        name=name,
    )


def send_body(who: Who, text: str, token: str) -> dict[str, Any]:
    """A text to `who`: by phone number if there is one, else by business-scoped id. `token` returns with statuses."""
    return {
        "messaging_product": "whatsapp",
        "recipient_type": "individual",
        **({"to": who.phone} if who.phone else {"recipient": who.user_id}),
        "type": "text",
        "text": {"body": text, "preview_url": False},
        "biz_opaque_callback_data": token,
    }


def typing_body(message_id: str) -> dict[str, Any]:
    """Marks a message and all before it as read, and shows typing for 25 s at most."""
    return {
        "messaging_product": "whatsapp",
        "status": "read",
        "message_id": message_id,
        "typing_indicator": {"type": "text"},
    }
