"""Messenger and Instagram Direct: webhooks to events, and the bodies of requests. They share one form.

Formats: https://developers.facebook.com/documentation/business-messaging/messenger-platform/webhooks/webhook-events
and https://developers.facebook.com/documentation/business-messaging/instagram-messaging/webhooks
Left out: comments, templates, one-time notifications, the tag HUMAN_AGENT (which a program must not use).
"""

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

MESSENGER_CAP = 2000
"""Characters of a text message."""
INSTAGRAM_CAP = 1000
"""Bytes of UTF-8 of a text message."""
READABLE = ("image",)


def parse(payload: Any, account: str, *, instagram: bool = False, app_id: str = "") -> Iterator[Event]:
    """The events of a delivery to the page or Instagram account `account`; `app_id`: of our app, to know who has the
    conversation when control of it is passed."""
    # Meta's page once shows the top level as a list.
    for one in payload if isinstance(payload, list) else [payload]:
        yield from _delivery(table_of(one), account, "instagram" if instagram else "page", app_id)


def _delivery(payload: dict[str, Any], account: str, expected: str, app_id: str) -> Iterator[Event]:
    if payload.get("object") != expected:
        yield ignored(f"object {short_name(payload.get('object'))}")
        return

    def entry(one: dict[str, Any]) -> Iterator[Event]:
        mine = one.get("id") == account
        yield from each(one.get("messaging"), lambda event: _event(event, account, mine, app_id), "event")
        # Another app has the conversation: nothing of it is ours to answer.
        yield from each(one.get("standby"), lambda event: [ignored("standby")], "standby")
        yield from each(one.get("changes"), lambda change: [ignored(f"field {short_name(change['field'])}")], "change")
        if not {"messaging", "standby", "changes"} & one.keys():
            yield ignored("entry without events")

    yield from each(payload.get("entry"), entry, "entry")


def _event(event: dict[str, Any], account: str, mine: bool, app_id: str) -> Iterator[Event]:
    sender, recipient = (text_of(table_of(event.get(side)).get("id")) for side in ("sender", "recipient"))
    time = seconds_of(event.get("timestamp") or 0) / 1000
    message = event.get("message")
    is_echo = isinstance(message, dict) and (message.get("is_echo") or sender == account)
    if not (mine or account in (sender, recipient)):
        yield ignored("another account")
    elif is_echo:
        assert isinstance(message, dict)
        mid = id_of(message["mid"])
        yield Event(
            kind="echo", key=mid, message_id=mid, who=Who(user_id=recipient), time=time,
            text=text_of(message.get("text")), token=text_of(message.get("metadata")),
        )  # fmt: skip
    elif sender == account or not sender:
        yield ignored("event of our own")
    elif isinstance(message, dict):
        yield _message(message, sender, time)
    elif isinstance(event.get("message_edit"), dict):
        edit = event["message_edit"]
        order, mid = seconds_of(edit.get("num_edit") or 0), id_of(edit["mid"])
        yield Event(
            kind="edit", key=f"{mid} edit {order:g}", message_id=mid, who=Who(user_id=sender),
            time=time, text=text_of(edit["text"]), order=order,
        )  # fmt: skip
    elif isinstance(event.get("postback"), dict):
        postback = event["postback"]
        key = text_of(postback.get("mid")) or f"postback {sender} {time:f}"
        text = text_of(postback.get("title")) or text_of(postback.get("payload"))
        yield Event(kind="message", key=key, message_id=key, who=Who(user_id=sender), time=time, text=text)
    elif isinstance(event.get("reaction"), dict):
        yield Event(kind="reaction", who=Who(user_id=sender), time=time, message_id=id_of(event["reaction"]["mid"]))
    elif isinstance(event.get("delivery"), dict):
        for mid in event["delivery"].get("mids") or []:
            yield Event(kind="status", name="delivered", who=Who(user_id=sender), message_id=text_of(mid), time=time)
        if not event["delivery"].get("mids"):
            yield Event(kind="status", name="delivered", who=Who(user_id=sender), time=time)
    elif isinstance(event.get("read"), dict):
        mid = text_of(event["read"].get("mid"))
        yield Event(kind="status", name="read", who=Who(user_id=sender), message_id=mid, time=time)
    else:
        yield _control(event, sender, time, app_id)


def _message(message: dict[str, Any], sender: str, time: float) -> Event:
    mid, who = id_of(message["mid"]), Who(user_id=sender)
    if message.get("is_deleted"):
        return Event(kind="revoke", key=f"{mid} deleted", message_id=mid, who=who, time=time)
    if message.get("is_unsupported"):
        return ignored("message unsupported")
    text, media, name = text_of(message.get("text")), list[Media](), ""
    for one in message.get("attachments") or []:
        kind, url = text_of(one["type"]), text_of(table_of(one.get("payload")).get("url"))
        if kind in READABLE and url:
            media.append(Media(ref=url))
        elif not (kind == "fallback" and text):  # the preview of a link that stands in the text
            name = short_name(kind)
    if not (text or media or name):
        return ignored("message without content")
    return Event(kind="message", key=mid, message_id=mid, who=who, time=time, text=text, media=tuple(media), name=name)


def _control(event: dict[str, Any], sender: str, time: float, app_id: str) -> Event:
    """Passing of the conversation between apps; anything else is ignored by name."""
    if isinstance(passed := event.get("pass_thread_control"), dict):
        # Only the app that gets the conversation is told.
        ours = not app_id or str(passed.get("new_owner_app_id")) == app_id
        return Event(kind="handover", who=Who(user_id=sender), time=time, ours=ours)
    if isinstance(event.get("take_thread_control"), dict):
        return Event(kind="handover", who=Who(user_id=sender), time=time, ours=False)
    names = sorted(event.keys() - {"sender", "recipient", "timestamp"})
    return ignored(f"event {short_name(names[0]) if names else 'without content'}")


def send_body(who: Who, text: str, token: str, *, instagram: bool) -> dict[str, Any]:
    """A text to `who`. On Messenger `token` comes back with the echo; Instagram has no such field."""
    message = {"text": text} if instagram else {"text": text, "metadata": token}
    kind = {} if instagram else {"messaging_type": "RESPONSE"}
    return {"recipient": {"id": who.user_id}, **kind, "message": message}


def action_body(who: Who, action: str) -> dict[str, Any]:
    """`mark_seen`, `typing_on` or `typing_off`."""
    return {"recipient": {"id": who.user_id}, "sender_action": action}
