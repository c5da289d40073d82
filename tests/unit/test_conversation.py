"""A conversation: what is appended, in which order, and what of it is written."""

import json
from pathlib import Path

import pytest
from PIL import Image

from herd.data.tokens.tool_calls import Call
from herd.engine.conversation import Conversation
from herd.engine.reply import Reply
from herd.errors import HerdError


def calling(*names: str) -> Reply:
    calls = tuple(Call(name=name, arguments={"n": 1}) for name in names)
    return Reply(text="", finish_reason="tool_calls", num_tokens=1, tool_calls=calls)


def test_results_of_calls_are_put_in_the_order_of_the_calls_with_their_names() -> None:
    talk = Conversation([{"role": "user", "content": "hello"}])
    talk.add_reply(calling("clock", "weather", "clock"))
    first, second, third = talk.pending_calls
    for call, content in ((third, "c"), (first, "a"), (second, "b")):
        talk.add_tool_result(call, content)
    assert [(one["content"], one["name"]) for one in talk.messages[2:]] == [
        ("a", "clock"),
        ("b", "weather"),
        ("c", "clock"),
    ]
    assert talk.pending_calls == []
    for call in (first, "unknown"):
        with pytest.raises(HerdError, match="no call before it waits for the result"):
            talk.add_tool_result(call, "again")
    talk.add_user("and now")
    with pytest.raises(HerdError, match="no call"):
        talk.add_tool_result(first, "late")


def test_pictures_are_opened_from_the_folder_and_written_by_their_paths(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    talk = Conversation(system="Be brief.", folder=tmp_path)
    assert talk.attach("image", "red.png")["image"].size == (30, 20)
    talk.add({"role": "user", "content": [{"type": "image", "image": (tmp_path / "red.png").read_bytes()}]})
    talk.messages.clear()
    talk.add_user("what is it")
    assert talk.attached == []
    messages = json.loads(talk.to_json())["messages"]
    assert messages[0] == {"role": "system", "content": "Be brief."}
    assert messages[1]["content"] == [
        {"type": "image", "image": str(tmp_path / "red.png")},
        {"type": "text", "text": "what is it"},
    ]
    again = Conversation(messages)
    assert again.messages[1]["content"][0]["image"].getpixel((0, 0)) == (255, 0, 0)
    talk.undo_user()
    assert talk.messages == [] and len(talk.attached) == 1


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (3, r"messages\[1\] is 3"),
        ("hello", "must be an object with role"),
        ({"role": "user"}, "content is null"),
        ({"role": "user", "content": [{"type": "image", "image": "no.png"}]}, "no.png does not exist"),
    ],
)
def test_what_is_no_message_is_refused_with_its_place(message: object, says: str) -> None:
    with pytest.raises(HerdError, match=says):
        Conversation([{"role": "user", "content": "a"}, message])  # type: ignore[list-item]
