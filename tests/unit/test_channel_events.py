"""Webhooks of the three channels become events; nothing that is unknown stops what stands beside it."""

import copy
import json
from typing import Any

import channel_payloads as made
import pytest
from channel_payloads import BSUID, IGID, NUMBER, PAGE, PHONE, PSID, WAMID, as_meta_writes, sign
from hypothesis import given
from hypothesis import strategies as st

from herd.serve.channels import messenger, whatsapp
from herd.serve.channels.events import Event, Media, Who, challenge_of, is_signed
from herd.serve.channels.inbox import receive
from herd.serve.channels.store import Store


def wa(payload: Any) -> list[Event]:
    return list(whatsapp.parse(payload, NUMBER))


def msg(payload: Any, **options: Any) -> list[Event]:
    return list(messenger.parse(payload, PAGE, **options))


def ig(payload: Any) -> list[Event]:
    return list(messenger.parse(payload, IGID, instagram=True))


def test_a_whatsapp_text_and_a_picture_with_its_caption_are_messages():
    [text] = wa(made.WA_TEXT)
    assert text == Event(
        kind="message", key=WAMID, message_id=WAMID, who=Who(phone=PHONE), time=1749416383.0,
        text="Does it come in another color?",
    )  # fmt: skip
    [picture] = wa(made.WA_IMAGE)
    assert (picture.text, picture.media) == ("Taj Mahal", (Media(ref="1003383421387256", mime="image/jpeg"),))


@pytest.mark.parametrize(
    ("message", "contact", "who"),
    [
        ({"phone": PHONE}, (PHONE, None), Who(phone=PHONE)),
        ({"phone": PHONE, "user_id": BSUID}, (PHONE, BSUID), Who(phone=PHONE, user_id=BSUID)),
        ({"phone": None, "user_id": BSUID}, (None, BSUID), Who(user_id=BSUID)),
        ({"phone": "", "user_id": BSUID}, ("", BSUID), Who(user_id=BSUID)),
        ({"phone": PHONE}, (PHONE, BSUID), Who(phone=PHONE, user_id=BSUID)),
        ({"phone": None}, (None, BSUID), Who(user_id=BSUID)),
    ],
    ids=["phone", "both", "id alone", "empty phone", "id in the contact", "contact alone"],
)
def test_a_whatsapp_sender_is_known_by_phone_by_id_or_by_both(message: Any, contact: Any, who: Who):
    [event] = wa(made.wa_messages(made.wa_message(**message), contacts=[made.contact(*contact)]))
    assert (event.kind, event.who) == ("message", who)


def test_each_message_of_a_batch_is_read_with_its_own_contact():
    value = made.wa_messages(
        made.wa_message(mid="a", phone="1"),
        made.wa_message(mid="b", phone="2"),
        made.wa_message(mid="c", phone=None, user_id=BSUID),
        contacts=[made.contact("2", "US.2"), made.contact("1", "US.1"), made.contact(None, BSUID)],
    )
    value["entry"][0]["changes"].append(copy.deepcopy(made.wa_status()["entry"][0]["changes"][0]))
    value["entry"] += made.WA_IMAGE["entry"]
    events = wa(value)
    assert [event.kind for event in events] == ["message"] * 3 + ["status", "message"]
    senders = [Who(phone="1", user_id="US.1"), Who(phone="2", user_id="US.2"), Who(user_id=BSUID)]
    assert [event.who for event in events[:3]] == senders


def test_edits_revokes_reactions_and_changed_ids_of_whatsapp():
    [edit] = wa(made.WA_EDIT)
    assert (edit.kind, edit.key, edit.message_id, edit.text) == ("edit", "wamid.edit", WAMID, "In blue?")
    [revoke] = wa(made.WA_REVOKE)
    assert (revoke.kind, revoke.message_id) == ("revoke", WAMID)
    [reaction] = wa(made.WA_REACTION)
    assert (reaction.kind, reaction.message_id) == ("reaction", WAMID)
    [moved] = wa(made.WA_NUMBER_CHANGED)
    assert (moved.kind, moved.who, moved.new) == ("moved", Who(phone=PHONE), Who(phone="12195555358"))
    [moved] = wa(made.WA_ID_CHANGED)
    assert (moved.kind, moved.who, moved.new) == ("moved", Who(user_id=BSUID), Who(user_id="MX.0987654321"))


def test_a_changed_id_is_read_from_the_sentence_where_the_field_is_missing():
    payload = copy.deepcopy(made.WA_ID_CHANGED)
    del payload["entry"][0]["changes"][0]["value"]["messages"][0]["system"]["previous_user_id"]
    [moved] = wa(payload)
    assert (moved.who, moved.new) == (Who(user_id=BSUID), Who(user_id="MX.0987654321"))


def test_statuses_and_echoes_of_whatsapp_carry_what_tells_ours():
    [status] = wa(made.wa_status("delivered", token="part-7"))
    assert (status.kind, status.name, status.token) == ("status", "delivered", "part-7")
    [echo] = wa(made.WA_ECHO)
    assert (echo.kind, echo.who) == ("echo", Who(phone=PHONE))


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (made.WA_UNSUPPORTED, "message unsupported"),
        (made.WA_ERRORS, "error 130429"),
        (made.wa({}, field="account_update"), "field account_update"),
        (made.wa_messages(made.wa_message("poll", {"a": 1})), "message poll"),
        (made.wa_messages({**made.wa_message(), "group_id": "g"}), "group message"),
        (made.wa_messages(made.wa_message(phone=None), contacts=[]), "message without a sender"),
        ({"object": "page"}, "object page"),
        ([], "object None"),
    ],
)
def test_what_whatsapp_says_beside_messages_is_ignored_by_name(payload: Any, name: str):
    [event] = wa(payload)
    assert (event.kind, event.name) == ("ignored", name)


def test_another_number_of_the_account_is_not_ours():
    [event] = list(whatsapp.parse(made.WA_TEXT, "999"))
    assert (event.kind, event.name) == ("ignored", "another account")


def test_a_voice_message_is_a_message_that_cannot_be_read():
    audio = {"mime_type": "audio/ogg; codecs=opus", "sha256": "x", "id": "1908647269898587", "voice": True}
    [event] = wa(made.wa_messages(made.wa_message("audio", audio)))
    assert (event.kind, event.name, event.text) == ("message", "audio", "")


def test_messenger_events():
    [text] = msg(made.MSG_TEXT)
    assert (text.kind, text.who, text.text) == ("message", Who(user_id=PSID), "hello, world")
    assert text.time == pytest.approx(1458668856.463)
    [edit] = msg(made.MSG_EDIT)
    assert (edit.kind, edit.message_id, edit.order, edit.text) == ("edit", made.MID, 1.0, "hello, moon")
    [echo] = msg(made.MSG_ECHO)
    assert (echo.kind, echo.who, echo.token) == ("echo", Who(user_id=PSID), "DEVELOPER_DEFINED_METADATA_STRING")
    assert [one.kind for one in msg(made.MSG_REACTION)] == ["reaction"]
    assert [(one.kind, one.name) for one in msg(made.MSG_STANDBY)] == [("ignored", "standby")]
    assert [(one.kind, one.name) for one in msg(made.MSG_DELIVERY)] == [("status", "delivered")]
    assert [(one.kind, one.name) for one in msg(made.MSG_READ)] == [("status", "read")]
    [pressed] = msg(made.MSG_POSTBACK)
    assert (pressed.kind, pressed.text, pressed.key) == ("message", "Talk", "mid.postback")
    [picture] = msg(made.MSG_IMAGE)
    assert picture.media == (Media(ref="https://scontent.xx.fbcdn.net/v/t1/a.jpg"),)


def test_control_of_a_conversation_is_ours_or_another_apps():
    assert [one.ours for one in msg(made.MSG_PASSED, app_id="123456789")] == [True]
    assert [one.ours for one in msg(made.MSG_PASSED, app_id="5")] == [False]
    assert [(one.kind, one.ours) for one in msg(made.MSG_TAKEN)] == [("handover", False)]


def test_instagram_events_are_not_answers_to_ourselves():
    [text] = ig(made.IG_TEXT)
    assert (text.kind, text.text) == ("message", "MESSAGE-TEXT")
    assert [one.kind for one in ig([made.IG_TEXT])] == ["message"]
    [deleted] = ig(made.IG_DELETED)
    assert (deleted.kind, deleted.message_id) == ("revoke", "MESSAGE-ID")
    [echo] = ig(made.IG_ECHO)
    assert (echo.kind, echo.who) == ("echo", Who(user_id=made.IGSID))
    unmarked = copy.deepcopy(made.IG_ECHO)
    del unmarked["entry"][0]["messaging"][0]["message"]["is_echo"]
    assert [one.kind for one in ig(unmarked)] == ["echo"]
    assert [one.name for one in ig(made.IG_UNSUPPORTED)] == ["message unsupported"]
    assert [one.name for one in ig(made.IG_READ)] == ["read"]
    assert [one.text for one in ig(made.IG_STORY)] == ["nice"]


def test_an_entry_without_messaging_is_no_error():
    assert [one.name for one in msg({"object": "page", "entry": [{"id": PAGE}]})] == ["entry without events"]
    assert [one.name for one in ig(made.ig({"field": "comments", "value": {}}, key="changes"))] == ["field comments"]


PUBLISHED = {name: one for name, one in vars(made).items() if name.startswith(("WA_", "MSG_", "IG_"))}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(tmp_path_factory.mktemp("store") / "channels.sqlite")
    made.db.execute("PRAGMA synchronous = OFF")
    return made


@given(st.sampled_from(sorted(PUBLISHED)), st.data())
def test_every_change_of_a_published_payload_can_be_read_and_stored(store: Store, name: str, data: st.DataObject):
    payload = copy.deepcopy(PUBLISHED[name])
    path = data.draw(st.sampled_from([one for one in places(payload) if one]))
    at = payload
    for key in path[:-1]:
        at = at[key]
    if data.draw(st.booleans()):
        at[path[-1]] = data.draw(JSON)
    elif isinstance(at, dict):
        del at[path[-1]]
    for channel, read in (("whatsapp", wa), ("messenger", msg), ("instagram", ig)):
        receive(store, channel, read(payload), now=1e9, handover_hours=1.0)
        for one in read(payload):
            json.dumps([one.key, one.text, one.message_id], ensure_ascii=False).encode()


@given(JSON)
def test_a_broken_message_does_not_take_its_neighbours_with_it(broken: Any):
    events = wa(made.wa_messages(made.wa_message(mid="a"), broken, made.wa_message(mid="b")))
    assert [one.key for one in events if one.kind == "message" and one.key in "ab"] == ["a", "b"]


TEXTS = ["plain", "كيف حالك؟", "👩‍👩‍👧 100 % <b>@you</b> / äöü", "\u2028 € \U0001f600"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_signature_over_escaped_unicode_is_accepted_and_forgeries_are_not(text: str):
    body = as_meta_writes(made.wa_messages(made.wa_message(content={"body": text})))
    assert is_signed(body, sign(body), made.SECRET)
    assert not is_signed(json.dumps(json.loads(body), ensure_ascii=False).encode(), sign(body), made.SECRET)
    assert not is_signed(body, sign(body, "another secret"), made.SECRET)
    for header in ("", "sha256=", sign(body)[7:], sign(body).upper(), sign(body)[:-1], "sha1=abc", "sha256=é"):
        assert not is_signed(body, header, made.SECRET), header
    [event] = wa(json.loads(body))
    assert event.text == text


def test_the_handshake_answers_the_challenge_for_the_right_token_alone():
    query = {"hub.mode": "subscribe", "hub.verify_token": "t", "hub.challenge": "1158201444"}
    assert challenge_of(query, "t") == "1158201444"
    assert challenge_of(query, "u") is None
    assert challenge_of({**query, "hub.mode": "unsubscribe"}, "t") is None
    assert challenge_of({}, "t") is None


def test_pywa_reads_the_same_from_a_delivery_of_one_message():
    pywa = pytest.importorskip("pywa")
    from pywa.types import Message

    client = pywa.WhatsApp(phone_id=NUMBER, token="none")
    for payload in (
        made.wa_messages(made.wa_message(user_id=BSUID), contacts=[made.contact(PHONE, BSUID)]),
        made.wa_messages(made.wa_message("image", made.IMAGE, user_id=BSUID), contacts=[made.contact("", BSUID)]),
    ):
        theirs = Message.from_update(client, payload)
        [ours] = wa(payload)
        assert ours.key == theirs.id
        assert ours.time == theirs.timestamp.timestamp()
        assert ours.text == (theirs.text or theirs.caption)
        assert ours.who.user_id == theirs.from_user.bsuid
        assert [one.ref for one in ours.media] == ([theirs.image.id] if theirs.image else [])
