"""Webhook deliveries as Meta's pages publish them, with the pages' own example values; and their signature.

Below https://developers.facebook.com/documentation/business-messaging/ :
WA    whatsapp/webhooks/reference/messages (text, image, reaction, system, revoke, edit, unsupported, status, errors)
ECHO  whatsapp/webhooks/reference/smb_message_echoes
BSUID whatsapp/business-scoped-user-ids
MSG   messenger-platform/webhooks/webhook-events (message-edits, message-echoes, message-reactions, standby, handovers)
IG    instagram-messaging/webhooks
"""

import hashlib
import hmac
import json
from typing import Any

NUMBER, WABA = "106540352242922", "102290129340398"
PHONE, BSUID = "16505551234", "US.13491208655302741918"
PAGE, PSID = "1234567890", "9876543210123456"
IGID, IGSID = "17841400000000001", "6543210987654321"
WAMID = "wamid.HBgLMTY1MDM4Nzk0MzkVAgASGBQzQTRBNjU5OUFFRTAzODEwMTQ0RgA="
MID = "mid.1457764197618:41d102a3e1ae206a38"
SECRET = "an app secret"


def sign(body: bytes, secret: str = SECRET) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def as_meta_writes(payload: Any) -> bytes:
    """JSON with escaped unicode and slashes, over which Meta signs."""
    return json.dumps(payload, ensure_ascii=True, separators=(",", ":")).replace("/", "\\/").encode()


# WhatsApp


def wa(value: dict[str, Any], *, field: str = "messages") -> dict[str, Any]:
    metadata = {"display_phone_number": "15550783881", "phone_number_id": NUMBER}
    change = {"value": {"messaging_product": "whatsapp", "metadata": metadata, **value}, "field": field}
    return {"object": "whatsapp_business_account", "entry": [{"id": WABA, "changes": [change]}]}


def contact(phone: str | None = PHONE, user_id: str | None = None) -> dict[str, Any]:
    ids = {"wa_id": phone, "user_id": user_id}
    return {"profile": {"name": "Sheena Nelson"}, **{key: one for key, one in ids.items() if one is not None}}


def wa_message(
    kind: str = "text",
    content: Any = None,
    *,
    mid: str = WAMID,
    phone: str | None = PHONE,
    user_id: str | None = None,
    time: float = 1749416383,
) -> dict[str, Any]:
    content = {"body": "Does it come in another color?"} if content is None else content
    ids = {"from": phone, "from_user_id": user_id}
    return {
        **{key: one for key, one in ids.items() if one is not None},
        "id": mid,
        "timestamp": str(int(time)),
        "type": kind,
        kind: content,
    }


def wa_messages(*messages: dict[str, Any], contacts: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return wa({"contacts": [contact()] if contacts is None else contacts, "messages": list(messages)})


IMAGE = {
    "caption": "Taj Mahal",
    "mime_type": "image/jpeg",
    "sha256": "SfInY0gGKTsJlUWbwxC1k+FAD0FZHvzwfpvO0zX0GUI=",
    "id": "1003383421387256",
}
WA_TEXT = wa_messages(wa_message())
WA_IMAGE = wa_messages(wa_message("image", IMAGE))
WA_REACTION = wa_messages(wa_message("reaction", {"message_id": WAMID, "emoji": "👍"}, mid="wamid.reaction"))
WA_BSUID = wa_messages(wa_message(phone=None, user_id=BSUID), contacts=[contact(None, BSUID)])
WA_EDIT = wa_messages(
    wa_message(
        "edit",
        {"original_message_id": WAMID, "message": {"type": "text", "text": {"body": "In blue?"}}},
        mid="wamid.edit",
        time=1749416390,
    )
)
WA_REVOKE = wa_messages(wa_message("revoke", {"original_message_id": WAMID}, mid="wamid.revoke", time=1749416399))
WA_UNSUPPORTED = wa_messages(
    {
        "from": PHONE,
        "id": "wamid.unsupported",
        "timestamp": "1750090702",
        "errors": [
            {
                "code": 131051,
                "title": "Message type unknown",
                "message": "Message type unknown",
                "error_data": {"details": "Message type is currently not supported."},
            }
        ],
        "type": "unsupported",
        "unsupported": {"type": "video_note"},
    }
)
WA_NUMBER_CHANGED = wa(
    {
        "messages": [
            wa_message(
                "system",
                {
                    "body": "User Sheena Nelson changed from 16505551234 to 12195555358",
                    "wa_id": "12195555358",
                    "type": "user_changed_number",
                },
                mid="wamid.system",
            )
        ]
    }
)
WA_ID_CHANGED = wa(
    {
        "messages": [
            wa_message(
                "system",
                {
                    "body": f"User changed from {BSUID} to MX.0987654321",
                    "user_id": "MX.0987654321",
                    "previous_user_id": BSUID,
                    "type": "user_changed_user_id",
                },
                mid="wamid.system2",
                phone=None,
            )
        ]
    }
)
WA_ERRORS = wa(
    {
        "errors": [
            {
                "code": 130429,
                "title": "Rate limit hit",
                "message": "Rate limit hit",
                "error_data": {"details": "Message failed to send because there were too many messages sent"},
                "href": "/docs/whatsapp/cloud-api/support/error-codes/",
            }
        ]
    }
)
WA_ECHO = wa(
    {
        "message_echoes": [
            {
                "from": "15550783881",
                "to": PHONE,
                "id": "wamid.echo",
                "timestamp": "1739321024",
                "type": "text",
                "text": {"body": "Here's the info you requested! https://www.meta.com/quest/quest-3/"},
            }
        ]
    },
    field="smb_message_echoes",
)


def wa_status(status: str = "sent", *, mid: str = WAMID, token: str = "", phone: str = PHONE) -> dict[str, Any]:
    data = {"biz_opaque_callback_data": token} if token else {}
    one = {"id": mid, "status": status, "timestamp": "1750030073", "recipient_id": phone, **data}
    return wa({"statuses": [one]})


# Messenger and Instagram


def msg(*events: dict[str, Any], key: str = "messaging", page: str = PAGE, kind: str = "page") -> dict[str, Any]:
    return {"object": kind, "entry": [{"id": page, "time": 1458692752478, key: list(events)}]}


def ig(*events: dict[str, Any], key: str = "messaging") -> dict[str, Any]:
    return msg(*events, key=key, page=IGID, kind="instagram")


def event(
    content: dict[str, Any], *, sender: str = PSID, recipient: str = PAGE, time: float = 1458668856.463
) -> dict[str, Any]:
    return {
        "sender": {"id": sender},
        "recipient": {"id": recipient},
        "timestamp": round(1000 * time),
        **content,
    }


def ig_event(content: dict[str, Any], *, time: float = 1569262485.349) -> dict[str, Any]:
    return event(content, sender=IGSID, recipient=IGID, time=time)


MSG_TEXT = msg(event({"message": {"mid": MID, "text": "hello, world"}}))
MSG_EDIT = msg(event({"message_edit": {"mid": MID, "text": "hello, moon", "num_edit": 1}}))
MSG_ECHO = msg(
    event(
        {
            "message": {
                "is_echo": True,
                "app_id": 1517776481860111,
                "metadata": "DEVELOPER_DEFINED_METADATA_STRING",
                "mid": "mid.echo",
                "text": "ours",
            }
        },
        sender=PAGE,
        recipient=PSID,
    )
)
MSG_REACTION = msg(event({"reaction": {"reaction": "love", "emoji": "\u2764\ufe0f", "action": "react", "mid": MID}}))
MSG_STANDBY = msg(event({"message": {"mid": "mid.standby", "text": "for another app"}}), key="standby")
MSG_DELIVERY = msg(event({"delivery": {"mids": ["mid.1458668856218:ed81099e15d3f4f233"], "watermark": 1458668856253}}))
MSG_READ = msg(event({"read": {"watermark": 1458668856253}}))
MSG_PASSED = msg(
    event(
        {
            "pass_thread_control": {
                "previous_owner_app_id": None,
                "new_owner_app_id": "123456789",
                "metadata": "Additional content that the caller wants to set",
            }
        }
    )
)
MSG_TAKEN = msg(event({"take_thread_control": {"previous_owner_app_id": "123456789", "metadata": ""}}))
MSG_POSTBACK = msg(event({"postback": {"mid": "mid.postback", "title": "Talk", "payload": "TALK_PAYLOAD"}}))
MSG_IMAGE = msg(
    event(
        {
            "message": {
                "mid": "mid.image",
                "attachments": [{"type": "image", "payload": {"url": "https://scontent.xx.fbcdn.net/v/t1/a.jpg"}}],
            }
        }
    )
)
IG_TEXT = ig(ig_event({"message": {"mid": "MESSAGE-ID", "text": "MESSAGE-TEXT"}}))
IG_DELETED = ig(ig_event({"message": {"mid": "MESSAGE-ID", "is_deleted": True}}))
IG_UNSUPPORTED = ig(ig_event({"message": {"mid": "MESSAGE-ID-2", "is_unsupported": True}}))
IG_ECHO = ig(event({"message": {"mid": "MESSAGE-ID-3", "text": "ours", "is_echo": True}}, sender=IGID, recipient=IGSID))
IG_READ = ig(ig_event({"read": {"mid": "MESSAGE-ID"}}))
IG_STORY = ig(
    ig_event(
        {
            "message": {
                "mid": "MESSAGE-ID-4",
                "text": "nice",
                "reply_to": {"story": {"url": "https://lookaside.fbsbx.com/story", "id": "STORY-ID"}},
            }
        }
    )
)
