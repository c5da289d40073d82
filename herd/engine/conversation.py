"""A conversation: the system message, the tools, and the messages, with pictures and videos.

Messages are OpenAI's, as dictionaries. A picture is a part `{"type": "image", "image": …}` with a path, bytes or an
open picture; a video `{"type": "video", "video": …}` with a path or bytes, or its `frames` (see
herd.data.tokens.chat). They are opened when the message is added; paths begin at `folder`.
The results of tool calls are in the order of the calls: Llama 4's format gives them no names.
Left out: addresses of other hosts, as nothing is fetched.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from herd.data.media.image import read_picture
from herd.data.media.video import read_video, video_part
from herd.data.tokens.chat import checked_text, parts_of
from herd.engine.model import LoadedModel, Prompt
from herd.engine.reply import Reply
from herd.errors import HerdError

Message = dict[str, Any]
RESULT_ROLES = ("tool", "ipython")


class Conversation:
    """Messages to go on from. `system`, if given, comes before them; `tools` are OpenAI's objects."""

    def __init__(
        self,
        messages: Sequence[Mapping[str, Any]] = (),
        *,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        folder: Path = Path(),
    ) -> None:
        self.system = system and checked_text(system, "system")
        self.tools, self.folder = list(tools), folder
        self.messages: list[Message] = []
        self.attached: list[dict[str, Any]] = []
        """Pictures and videos that go with the user's next message."""
        for message in messages:
            self.add(message)

    @property
    def tool_names(self) -> tuple[str, ...]:
        return tuple(tool.get("function", tool)["name"] for tool in self.tools)

    @property
    def pending_calls(self) -> list[str]:
        """Ids of the last tool calls that have no result yet."""
        results = self._results()
        asked = self.messages[-1 - len(results)] if len(results) < len(self.messages) else {}
        answered = {one.get("tool_call_id") for one in results}
        return [call["id"] for call in asked.get("tool_calls") or () if call["id"] not in answered]

    def add(self, message: Mapping[str, Any]) -> None:
        """Append a message. Raises HerdError where it is none, or a picture of it cannot be opened."""
        here = f"messages[{len(self.messages)}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise HerdError(f"{here} is {short(message)}: it must be an object with role and content")
        content = message.get("content")
        if content is None and message["role"] == "assistant":
            content = ""
        if isinstance(content, list):
            content = [self._opened(part) for part in content]
        elif not isinstance(content, str):
            raise HerdError(f"{here}: content is {short(content)}: it must be a text or a list of parts")
        self.messages.append({**message, "content": content})

    def add_user(self, text: str) -> None:
        """Add a message of the user, with what is attached."""
        content: str | list[dict[str, Any]] = text
        if self.attached:
            content = [*self.attached, {"type": "text", "text": text}]
        self.messages.append({"role": "user", "content": content})
        self.attached = []

    def undo_user(self) -> None:
        """Take back `add_user`: what was attached waits for the next message again."""
        message = self.messages.pop()
        assert message["role"] == "user", message["role"]
        self.attached = parts_of(message)[:-1]

    def add_reply(self, reply: Reply) -> None:
        """The assistant's message."""
        self.messages.append(reply.as_message())

    def add_tool_result(self, call_id: str, content: str | list[dict[str, Any]]) -> None:
        """The result of a call of the assistant's last message."""
        if call_id not in self.pending_calls:
            raise HerdError(f"no call before it waits for the result {call_id!r}")
        results = self._results()
        asked = self.messages[-1 - len(results)]["tool_calls"]
        order = [call["id"] for call in asked]
        name = asked[order.index(call_id)]["function"]["name"]
        results.append({"role": "ipython", "content": content, "tool_call_id": call_id, "name": name})
        results.sort(key=lambda one: order.index(one["tool_call_id"]))
        self.messages[len(self.messages) - len(results) + 1 :] = results

    def attach(self, kind: str, source: Path | str | bytes) -> dict[str, Any]:
        """Keep the `image` or `video` at `source` for the user's next message; returns the part."""
        part = self._opened({"type": kind, kind: source})
        self.attached.append(part)
        return part

    @property
    def with_system(self) -> list[Message]:
        """The messages, the system's first."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.messages]

    def render(self, model: LoadedModel) -> Prompt:
        """The prompt for the assistant's next message."""
        return model.render(self.with_system, tools=self.tools)

    def to_json(self) -> str:
        """As a line that `herd generate` reads: pictures and videos by their paths."""

        def written(part: dict[str, Any]) -> dict[str, Any]:
            return {"type": part["type"], part["type"]: part["path"]} if "path" in part else part

        def message_of(message: Message) -> Message:
            content = message["content"]
            return {**message, "content": content if isinstance(content, str) else [written(one) for one in content]}

        return json.dumps({"messages": [*map(message_of, self.with_system)]}, ensure_ascii=False)

    def _results(self) -> list[Message]:
        """The results at the end."""
        count = 0
        while count < len(self.messages) and self.messages[-1 - count]["role"] in RESULT_ROLES:
            count += 1
        return self.messages[len(self.messages) - count :]

    def _opened(self, part: dict[str, Any]) -> dict[str, Any]:
        """The part with its picture or video open, and the path that it came from."""
        kind = part["type"]
        source = part.get(kind) if kind in ("image", "video") else None
        if isinstance(source, str | Path):
            source = self.folder / Path(source).expanduser()
            named = {"path": str(source.resolve())}
        elif isinstance(source, bytes):
            named = {}
        else:
            return part
        opened = {"image": read_picture(source)} if kind == "image" else video_part(read_video(source))
        return {**part, **opened, **named}


def short(value: Any) -> str:
    """A value in an error message."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 40 else text[:40] + "…"
