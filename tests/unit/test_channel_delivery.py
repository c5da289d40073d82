"""Webhooks in, answers out: each message once, in order, within the channel's rules."""

import io
import os
import subprocess
import sys
import threading
import time
from copy import deepcopy
from pathlib import Path

import channel_payloads as made
import httpx2
import pytest
from channel_world import PHONE, eventually, on_disk, world
from PIL import Image
from starlette.responses import JSONResponse, Response

from herd.serve.channels import outbox
from herd.serve.channels.config import TRAITS
from herd.serve.channels.double import GraphDouble, local_accounts, signed
from herd.serve.channels.simulate import local_server
from herd.serve.channels.store import Store


@pytest.mark.parametrize("channel", ["whatsapp", "messenger", "instagram"])
def test_a_message_is_answered_once_however_often_it_comes(tmp_path: Path, channel: str):
    with world(tmp_path) as here:
        for _ in range(3):
            here.say("hello", channel=channel, mid="mid.same")
        assert here.texts(1) == ["You said: hello"]
        here.say("hello", channel=channel, mid="mid.same")
        assert here.texts(1) == ["You said: hello"]
        eventually(lambda: here.rows("SELECT state FROM parts") == [("sent",)])


def test_quick_messages_are_joined_and_later_ones_get_their_own_answer(tmp_path: Path):
    with world(tmp_path, join_s=0.3) as here:
        here.say("one")
        here.say("two")
        assert here.texts(1) == ["You said: one\ntwo"]
        here.say("three")
        assert here.texts(2)[1] == "You said: three"
        assert [(role, text) for role, text, _ in here.parrot.turns[1].history] == [
            ("user", "one"), ("user", "two"), ("assistant", "You said: one\ntwo"),
        ]  # fmt: skip


def test_what_comes_while_an_answer_is_written_waits_for_the_next(tmp_path: Path):
    with world(tmp_path) as here:
        here.parrot.gate.clear()
        here.say("one")
        eventually(lambda: len(here.parrot.turns) == 1)
        here.say("two")
        here.parrot.gate.set()
        assert here.texts(2) == ["You said: one", "You said: two"]


def test_an_edit_before_the_answer_replaces_the_text_and_a_deletion_removes_it(tmp_path: Path):
    with world(tmp_path) as here:
        here.parrot.gate.clear()
        here.say("helo", channel="messenger", who="77", mid="m1")
        eventually(lambda: len(here.parrot.turns) == 1)
        edit = {"message_edit": {"mid": "m1", "text": "hello", "num_edit": 1}}
        assert here.post("messenger", here.double.event("messenger", edit, who="77")) == 200
        here.parrot.gate.set()
        assert here.texts(1) == ["You said: hello"]
        here.parrot.gate.clear()
        here.say("my secret", channel="messenger", who="77", mid="m2")
        eventually(lambda: len(here.parrot.turns) == 3)
        gone = {"message": {"mid": "m2", "is_deleted": True}}
        assert here.post("messenger", here.double.event("messenger", gone, who="77")) == 200
        here.parrot.gate.set()
        eventually(lambda: here.rows("SELECT reason FROM messages WHERE mid = 'messenger m2'") == [("revoked",)])
        assert here.texts(1) == ["You said: hello"]
        assert "secret" not in on_disk(tmp_path)


def test_a_deletion_after_the_answer_removes_both_from_memory_and_disk(tmp_path: Path):
    with world(tmp_path) as here:
        here.say("my secret", mid=made.WAMID)
        here.texts(1)
        assert "secret" in on_disk(tmp_path)
        revoke = made.wa_message("revoke", {"original_message_id": made.WAMID}, mid="wamid.r")
        value = {"contacts": [made.contact()], "messages": [revoke]}
        eventually(lambda: here.rows("SELECT state FROM turns") == [("closed",)])
        assert here.post("whatsapp", here.double.whatsapp(value)) == 200
        assert "secret" not in on_disk(tmp_path)
        here.say("and now?")
        here.texts(2)
        assert here.parrot.turns[-1].history == []


def test_edits_and_deletions_may_overtake_their_message(tmp_path: Path):
    with world(tmp_path) as here:
        edit = {"message_edit": {"mid": "m1", "text": "newer", "num_edit": 2}}
        older = {"message_edit": {"mid": "m1", "text": "older", "num_edit": 1}}
        gone = {"message": {"mid": "m2", "is_deleted": True}}
        for content in (edit, older, gone):
            assert here.post("messenger", here.double.event("messenger", content, who="77")) == 200
        here.say("oldest", channel="messenger", who="77", mid="m1")
        here.say("regretted", channel="messenger", who="77", mid="m2")
        assert here.texts(1) == ["You said: newer"]
        assert "regretted" not in on_disk(tmp_path)


@pytest.mark.parametrize("channel", ["messenger", "instagram"])
def test_a_long_answer_comes_in_parts_in_order_the_next_after_the_first_is_accepted(tmp_path: Path, channel: str):
    cap = TRAITS[channel].cap
    with world(tmp_path) as here:
        answered = []

        def slow(channel: str, who: str, text: str) -> Response | None:
            answered.append(len(here.received))
            return None

        here.double.fault = slow
        here.say("é" * cap, channel=channel)
        size = len if channel == "messenger" else lambda text: len(text.encode())
        texts = here.texts(2 if channel == "messenger" else 3)
        assert "".join(texts) == "You said: " + "é" * cap
        assert all(size(text) <= cap for text in texts)
        assert answered == list(range(len(texts)))


def test_a_bot_does_not_answer_itself_nor_what_another_app_answers(tmp_path: Path):
    with world(tmp_path) as here:
        echo = {"message": {"mid": "e", "text": "ours", "is_echo": True}}
        assert here.post("instagram", here.double.event("instagram", echo, who="77", echo=True)) == 200
        standby = here.double.message("messenger", "not for us", who="77", mid="s")
        standby["entry"][0]["standby"] = standby["entry"][0].pop("messaging")
        assert here.post("messenger", standby) == 200
        for payload in deepcopy([made.WA_UNSUPPORTED, made.WA_REACTION, made.wa_status(), made.WA_ERRORS]):
            payload["entry"][0]["changes"][0]["value"]["metadata"]["phone_number_id"] = here.double.accounts[
                "whatsapp"
            ].id
            assert here.post("whatsapp", payload) == 200
        assert here.texts(0) == []
        counted = outbox.counts(here.channels.store)
        assert counted["messenger"] == {"ignored standby": 1}
        assert counted["whatsapp"]["ignored message unsupported"] == 1
        assert counted["whatsapp"]["reaction"] == 1


def test_what_was_not_confirmed_is_not_sent_again_and_a_receipt_settles_it(tmp_path: Path):
    with world(tmp_path, receipts=False) as here:
        here.double.fault = lambda *_: Response("bad gateway", status_code=502)
        here.say("one")
        eventually(lambda: here.rows("SELECT state FROM parts") == [("unknown",)])
        [(token,)] = here.rows("SELECT token FROM parts")
        status = {"id": "wamid.x", "status": "sent", "timestamp": "1750030073", "biz_opaque_callback_data": token}
        here.double.fault = None
        assert here.post("whatsapp", here.double.whatsapp({"statuses": [status]})) == 200
        eventually(lambda: here.rows("SELECT state, message_id FROM parts") == [("sent", "wamid.x")])
        assert here.texts(0) == []


def test_without_a_receipt_the_rest_of_the_answer_is_given_up_and_the_conversation_goes_on(tmp_path: Path):
    with world(tmp_path, receipts=False, unknown_wait_s=0.3) as here:
        here.double.fault = lambda *_: Response("bad gateway", status_code=502)
        here.say("a" * 3000, channel="messenger")
        eventually(lambda: [one[0] for one in here.rows("SELECT state FROM parts")] == ["unknown", "cancelled"])
        here.double.fault = None
        here.say("still there?", channel="messenger")
        assert here.texts(1) == ["You said: still there?"]


@pytest.mark.parametrize(
    ("status", "code", "state"),
    [(429, 130429, "sent"), (400, 131056, "sent"), (500, 2, "sent"), (400, 131026, "failed"), (400, 131047, "expired")],
)
def test_errors_of_the_graph_api_are_backed_off_or_final(tmp_path: Path, status: int, code: int, state: str):
    with world(tmp_path) as here:
        said: list[float] = []

        def once(*_: object) -> Response | None:
            said.append(time.monotonic())
            error = {"error": {"message": "m", "type": "OAuthException", "code": code, "error_data": {"details": "d"}}}
            return JSONResponse(error, status_code=status) if len(said) == 1 else None

        here.double.fault = once
        here.say("hello")
        eventually(lambda: here.rows("SELECT state FROM parts") == [(state,)])
        if state == "sent":
            assert said[1] - said[0] >= 0.9
        assert len(here.received) == (state == "sent")


def test_an_expired_token_pauses_the_channel_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("herd.serve.channels.delivery.ACCOUNT_PAUSE_S", 0.3)
    with world(tmp_path) as here:
        error = {"error": {"message": "m", "type": "OAuthException", "code": 190}}
        tries: list[str] = []

        def expired(channel: str, who: str, text: str) -> Response | None:
            tries.append(text)
            return JSONResponse(error, status_code=401) if len(tries) <= 2 else None

        here.double.fault = expired
        here.say("one")
        here.say("two", who="49170000001")
        assert sorted(here.texts(2)) == ["You said: one", "You said: two"]


def test_after_24_hours_nothing_is_sent(tmp_path: Path):
    with world(tmp_path) as here:
        here.say("old", at=time.time() - 86400 - 1)
        eventually(lambda: here.rows("SELECT state, reason FROM messages") == [("dropped", "too late")])
        here.parrot.gate.clear()
        here.say("in time", at=time.time() - 43200)
        eventually(lambda: len(here.parrot.turns) == 1)
        here.channels.delivery.clock = lambda: time.time() + 43200
        here.parrot.gate.set()
        eventually(lambda: here.rows("SELECT state FROM parts") == [("expired",)])
        assert here.texts(0) == []


def test_pictures_are_fetched_and_typing_is_shown(tmp_path: Path):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "blue").save(file, "PNG")
    with world(tmp_path) as here:
        here.double.media["77"] = ("image/png", file.getvalue())
        here.parrot.gate.clear()
        for channel in ("whatsapp", "messenger", "instagram"):
            here.say("what is this?", channel=channel, image="77")
        eventually(lambda: len(here.double.actions) == 5)
        here.parrot.gate.set()
        assert here.texts(3) == ["You said: what is this?"] * 3
        assert [turn.pictures for turn in here.parrot.turns] == [[file.getvalue()]] * 3
        typing = [body for channel, body in here.double.actions if channel == "whatsapp"]
        assert typing[0]["status"] == "read" and typing[0]["typing_indicator"] == {"type": "text"}
        shown = [body["sender_action"] for channel, body in here.double.actions if channel == "messenger"]
        assert shown == ["mark_seen", "typing_on"]


@pytest.mark.parametrize(
    ("kind", "data"), [("text/html", b"<html>"), ("image/png", bytes(9 * 2**20))], ids=["no picture", "too large"]
)
def test_what_is_no_picture_is_named_and_not_read(tmp_path: Path, kind: str, data: bytes):
    with world(tmp_path) as here:
        here.double.media["77"] = (kind, data)
        here.say("look", image="77")
        assert here.texts(1) == ["You said: [a picture that cannot be opened]\nlook"]


def test_pictures_of_other_hosts_are_not_fetched(tmp_path: Path):
    with world(tmp_path) as here:
        for url in ("http://169.254.169.254/latest", "https://fbcdn.net.evil.example/a.png", "file:///etc/passwd"):
            message = {"mid": url, "attachments": [{"type": "image", "payload": {"url": url}}]}
            assert here.post("messenger", here.double.event("messenger", {"message": message}, who=url)) == 200
        assert here.texts(3) == ["You said: [a picture that cannot be opened]"] * 3


def test_what_cannot_be_read_gets_one_answer_that_says_so(tmp_path: Path):
    with world(tmp_path) as here:
        audio = made.wa_message("audio", {"id": "1", "mime_type": "audio/ogg", "voice": True}, time=time.time())
        value = {"contacts": [made.contact()], "messages": [audio]}
        assert here.post("whatsapp", here.double.whatsapp(value)) == 200
        assert here.texts(1) == ["I can read text and pictures only."]
        assert here.parrot.turns == []


def test_who_opts_out_gets_nothing_more_until_they_opt_in(tmp_path: Path):
    with world(tmp_path) as here:
        here.say("STOP!")
        assert here.texts(1) == ["You will get no more messages from us. Write START to begin again."]
        here.say("hello?")
        here.say("stop")
        time.sleep(0.3)
        assert len(here.texts(1)) == 1
        here.say("Start")
        assert here.texts(2)[1:] == ["Welcome back."]
        here.say("hello?")
        assert here.texts(3)[2:] == ["You said: hello?"]


def test_a_conversation_is_handed_to_a_person_by_word_by_echo_and_by_meta(tmp_path: Path):
    with world(tmp_path) as here:
        here.say("human", channel="messenger", who="1")
        assert here.texts(1) == ["A person will answer you here."]
        echo = {"message": {"mid": "e", "text": "Hi, this is Ana.", "is_echo": True}}
        assert here.post("messenger", here.double.event("messenger", echo, who="2", echo=True)) == 200
        taken = {"take_thread_control": {"previous_owner_app_id": "1"}}
        assert here.post("messenger", here.double.event("messenger", taken, who="3")) == 200
        for who in ("1", "2", "3"):
            here.say("anyone?", channel="messenger", who=who)
        time.sleep(0.3)
        assert len(here.texts(1)) == 1
        passed = {"pass_thread_control": {"new_owner_app_id": "1"}}
        for who in ("2", "3"):
            assert here.post("messenger", here.double.event("messenger", passed, who=who)) == 200
            here.say(f"back {who}", channel="messenger", who=who)
        assert sorted(here.texts(3)[1:]) == ["You said: back 2", "You said: back 3"]
        known = [text for turn in here.parrot.turns for _, text, _ in turn.history]
        assert known == ["Hi, this is Ana.", "anyone?", "anyone?"]


def test_a_person_who_writes_very_much_is_told_once_and_then_waits(tmp_path: Path):
    with world(tmp_path, messages_per_hour=2) as here:
        for number in range(5):
            here.say(f"message {number}")
            eventually(lambda: here.rows("SELECT count(*) FROM messages WHERE state = 'new'") == [(0,)])
        assert here.texts(3)[2:] == ["You have sent many messages. Please try again later."]


def test_what_a_guard_blocks_is_no_part_of_the_conversation(tmp_path: Path):
    with world(tmp_path) as here:
        here.parrot.blocks = ("something bad",)
        here.say("something bad")
        assert here.texts(1) == ["I can't help with that."]
        here.say("hello")
        here.texts(2)
        assert here.parrot.turns[-1].history == []


def test_an_answer_that_fails_is_tried_again_and_then_said_so(tmp_path: Path):
    with world(tmp_path) as here:
        here.parrot.fails = 1
        here.say("once")
        assert here.texts(1) == ["You said: once"]
        here.parrot.fails = 3
        here.say("thrice")
        assert here.texts(2)[1:] == ["Something went wrong, so I have no answer. Please try again."]


def test_a_conversation_is_forgotten_on_request(tmp_path: Path):
    with world(tmp_path) as here:
        here.say("my secret")
        here.texts(1)
        here.say("Forget me!")
        assert here.texts(2)[1:] == ["Everything that was stored of this conversation has been deleted."]
        assert here.rows("SELECT count(*) FROM messages WHERE text LIKE '%secret%'") == [(0,)]
        assert "secret" not in on_disk(tmp_path)


def test_the_conversation_goes_on_when_the_phone_number_vanishes_or_changes(tmp_path: Path):
    with world(tmp_path) as here:

        def say(text: str, mid: str, **ids: str | None) -> None:
            value = {
                "contacts": [made.contact(ids.get("phone"), ids.get("user_id"))],
                "messages": [made.wa_message(content={"body": text}, mid=mid, time=time.time(), **ids)],
            }
            assert here.post("whatsapp", here.double.whatsapp(value)) == 200

        def system(content: dict[str, str], mid: str, phone: str | None) -> None:
            value = {"messages": [made.wa_message("system", content, mid=mid, phone=phone, time=time.time())]}
            assert here.post("whatsapp", here.double.whatsapp(value)) == 200

        say("both", "1", phone=PHONE, user_id=made.BSUID)
        here.texts(1)
        say("id alone", "2", phone="", user_id=made.BSUID)
        here.texts(2)
        system(
            {"type": "user_changed_user_id", "user_id": "MX.5", "previous_user_id": made.BSUID, "body": ""}, "3", None
        )
        say("new id", "4", phone=None, user_id="MX.5")
        here.texts(3)
        say("phone again", "5", phone=PHONE, user_id="MX.5")
        here.texts(4)
        system({"type": "user_changed_number", "wa_id": "12195555358", "body": ""}, "6", PHONE)
        say("new phone", "7", phone="12195555358", user_id=None)
        here.texts(5)
        assert [one.who for one in here.received] == [PHONE, made.BSUID, "MX.5", PHONE, "12195555358"]
        assert [len(turn.history) for turn in here.parrot.turns] == [0, 2, 4, 6, 8]


def test_a_number_that_is_somebody_elses_now_does_not_continue_the_conversation(tmp_path: Path):
    with world(tmp_path) as here:
        for number, user_id in enumerate(("US.1", "US.2")):
            value = {
                "contacts": [made.contact(PHONE, user_id)],
                "messages": [made.wa_message(mid=str(number), user_id=user_id, time=time.time())],
            }
            assert here.post("whatsapp", here.double.whatsapp(value)) == 200
            here.texts(number + 1)
        assert here.parrot.turns[1].history == []


def test_what_is_older_than_the_retention_is_deleted_but_not_answered_again(tmp_path: Path):
    with world(tmp_path) as here:
        here.say("my secret", mid="mid.old")
        here.texts(1)
        eventually(lambda: here.rows("SELECT state FROM turns") == [("closed",)])
        outbox.retain(here.channels.store, 1, time.time() + 2 * 86400)
        assert "secret" not in on_disk(tmp_path)
        assert here.rows("SELECT count(*) FROM people") == [(0,)]
        here.say("my secret", mid="mid.old")
        assert here.texts(1) == ["You said: my secret"]


def test_forged_deliveries_are_refused_and_nothing_of_them_is_stored(tmp_path: Path):
    with world(tmp_path) as here:
        body = made.as_meta_writes(here.double.message("whatsapp", "forged", who=PHONE, mid="f"))
        right = made.sign(body, "secret of whatsapp")
        for headers in ({}, {"X-Hub-Signature-256": made.sign(body)}, {"X-Hub-Signature": right}):
            answer = here.client.post(f"{here.url}/webhooks/whatsapp", content=body, headers=headers)
            assert answer.status_code == 403
        wrong = here.client.post(f"{here.url}/webhooks/messenger", content=body, headers={"X-Hub-Signature-256": right})
        assert wrong.status_code == 403
        assert here.rows("SELECT count(*) FROM messages") == [(0,)]
        query = {"hub.mode": "subscribe", "hub.verify_token": "verify", "hub.challenge": "1158201444"}
        asked = here.client.get(f"{here.url}/webhooks/instagram", params=query)
        assert (asked.status_code, asked.text) == (200, "1158201444")
        query["hub.verify_token"] = "guess"
        assert here.client.get(f"{here.url}/webhooks/instagram", params=query).status_code == 403
        assert here.client.get(f"{here.url}/webhooks/telegram").status_code == 404


def test_what_an_engine_was_closed_under_is_answered_after_the_next_start(tmp_path: Path):
    with world(tmp_path) as here:
        here.parrot.stops = True
        here.say("hello")
        eventually(lambda: bool(here.parrot.turns))
        time.sleep(0.2)
        assert here.rows("SELECT state, attempts FROM messages") == [("new", 0)]
    with world(tmp_path) as here:
        assert here.texts(1) == ["You said: hello"]


SERVER = """
import socket, sys
from pathlib import Path
from channel_world import Parrot
from herd.serve.channels.config import ChannelsConfig, Options
from herd.serve.channels.double import local_accounts
from herd.serve.channels.serve import run

config = ChannelsConfig(options=Options(join_s=0.0), accounts=local_accounts(sys.argv[1]), store=Path(sys.argv[2]))
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
run(config, Parrot(), listener)
"""


def test_sigterm_waits_for_the_part_that_is_being_sent(tmp_path: Path):
    double = GraphDouble(local_accounts("http://127.0.0.1/v25.0"), "", receipts=False)
    arrived, store = threading.Event(), tmp_path / "channels.sqlite"

    def slow(channel: str, who: str, text: str) -> None:
        arrived.set()
        time.sleep(1.0)

    double.fault = slow
    with local_server(double.app) as graph:
        double.accounts = local_accounts(f"{graph}/v25.0")
        command = [sys.executable, "-c", SERVER, f"{graph}/v25.0", str(store)]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{int(process.stdout.readline())}/webhooks/whatsapp"
            body, signature = signed(double.message("whatsapp", "hi", who=PHONE, mid="m"), "secret of whatsapp")
            with httpx2.Client(trust_env=False, verify=False) as client:
                assert client.post(url, content=body, headers={"X-Hub-Signature-256": signature}).status_code == 200
            assert arrived.wait(10)
            process.terminate()
            assert process.wait(10) == 0
    assert [one.text for one in double.texts] == ["You said: hi"]
    made = Store(store)
    assert [row[0] for row in made.db.execute("SELECT state FROM parts")] == ["sent"]
    made.close()
