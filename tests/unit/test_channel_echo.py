"""Echoes of what we sent, which come early, late or after the text is gone: none is taken for a person's."""

import time
from pathlib import Path

import pytest
from channel_world import eventually, on_disk, world

from herd.serve.channels import outbox


def test_our_own_echo_is_no_handover_even_before_the_answer_of_the_api(tmp_path: Path):
    with world(tmp_path, receipts=False) as here:

        def echo_first(channel: str, who: str, text: str) -> None:
            echo = {"message": {"mid": "mid.early", "text": text, "is_echo": True}}
            assert here.post("instagram", here.double.event("instagram", echo, who=who, echo=True)) == 200

        # In a thread of the double's: it answers the request only after that.
        here.double.fault = echo_first
        here.say("one", channel="instagram", who="7")
        here.texts(1)
        here.say("two", channel="instagram", who="7")
        assert here.texts(2) == ["You said: one", "You said: two"]


def test_our_own_echo_is_no_handover_when_what_it_answers_is_deleted_meanwhile(tmp_path: Path):
    """The answer's text goes with the message, and an echo of Instagram has nothing else that tells it as ours as long
    as the API has not named its message: it was taken for a person's, and nobody was answered for a day."""
    with world(tmp_path, receipts=False) as here:

        def delete_and_echo(channel: str, who: str, text: str) -> None:
            here.double.fault = None
            gone = {"message": {"mid": "m1", "is_deleted": True}}
            assert here.post("instagram", here.double.event("instagram", gone, who=who)) == 200
            assert here.rows("SELECT text FROM parts") == [("",)]
            echo = {"message": {"mid": "mid.early", "text": text, "is_echo": True}}
            assert here.post("instagram", here.double.event("instagram", echo, who=who, echo=True)) == 200

        here.double.fault = delete_and_echo
        here.say("one", channel="instagram", who="7", mid="m1")
        here.texts(1)
        here.say("two", channel="instagram", who="7")
        assert here.texts(2) == ["You said: one", "You said: two"]
        assert "You said: one" not in on_disk(tmp_path)


@pytest.mark.parametrize("channel", ["messenger", "instagram"])
@pytest.mark.parametrize("state", ["sent", "unknown"])
@pytest.mark.parametrize("how", ["deleted", "forgotten", "too old"])
def test_our_own_echo_is_no_handover_after_its_text_is_gone(tmp_path: Path, channel: str, state: str, how: str):
    with world(tmp_path, receipts=False) as here:
        here.say("one", channel=channel, who="7", mid="m1")
        here.texts(1)
        eventually(lambda: here.rows("SELECT state FROM turns") == [("closed",)])
        store = here.channels.store
        if state == "unknown":  # as after a crash
            store.db.execute("UPDATE parts SET state = 'unknown', message_id = ''")
        if how == "deleted":
            gone = {"message": {"mid": "m1", "is_deleted": True}}
            assert here.post(channel, here.double.event(channel, gone, who="7")) == 200
        elif how == "forgotten":
            outbox.forget(store, 1, time.time())
        else:
            outbox.retain(store, 1, time.time() + 2 * 86400)
        assert here.rows("SELECT 1 FROM parts WHERE text != ''") == []
        assert here.post(channel, here.double.receipt(here.received[0])) == 200
        here.say("two", channel=channel, who="7")
        assert here.texts(2) == ["You said: one", "You said: two"]
        theirs = {"message": {"mid": "e", "text": "Hi, this is Ana.", "is_echo": True}}
        assert here.post(channel, here.double.event(channel, theirs, who="7", echo=True)) == 200
        here.say("three", channel=channel, who="7")
        assert len(here.texts(2)) == 2
