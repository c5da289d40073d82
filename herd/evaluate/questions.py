"""Questions to a model: prompts made of chats and pictures, asked in batches."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from herd.data.loading.chat_media import ChatMedia
from herd.data.loading.tables import Clip, Picture
from herd.data.tasks.chats import Chat

if TYPE_CHECKING:
    from herd.engine.model import Prompt
    from herd.engine.pipeline import AnswerPipeline

CHUNK = 256  # prompts handed over at once: enough to fill batches, few enough for progress to be seen
NAMING_KIND = "name"  # of chats that ask for the name of the one picture in them
Done = Callable[[int], None]  # called with the number of questions that were answered since the last call


class Asker:
    """Puts questions to one model; pictures are decoded once."""

    def __init__(self, pipeline: "AnswerPipeline", pictures: Mapping[str, Picture], clips: Mapping[str, Clip]) -> None:
        self.model, self._pipeline = pipeline.model, pipeline
        self._media = ChatMedia(pictures, clips)

    def prompt(self, messages: list[dict[str, Any]]) -> "Prompt":
        """The prompt of messages that name their pictures and clips by their ids in the data folder."""
        from herd.engine.conversation import Conversation

        return Conversation(self._media.open(messages)).render(self.model)

    def fits(self, prompt: "Prompt") -> bool:
        """Whether the prompt leaves room for an answer in the context."""
        return len(prompt.token_ids) < self._pipeline.engine.max_model_len

    def ask(self, prompts: "Sequence[Prompt]", *, max_tokens: int, done: Done, **sampling: Any) -> list[str]:
        """The answers; greedy unless `sampling` is given."""
        from herd.engine.pipeline import ReplyRequest
        from herd.engine.sampler import SamplingParams

        params = SamplingParams(max_tokens=max_tokens, **sampling)
        answers: list[str] = []
        for start in range(0, len(prompts), CHUNK):
            chunk = [ReplyRequest(prompt=one, params=params) for one in prompts[start : start + CHUNK]]
            answers += [reply.text for reply in self._pipeline.replies([self._pipeline.fit(one) for one in chunk])]
            done(len(chunk))
        return answers


def has_media(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the messages hold anything but text."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    return any(part["type"] != "text" for part in parts)


def picture_of(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The id of the only picture in the messages; None when there is none or more than one."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    pictures = [part["picture"] for part in parts if part["type"] == "image"]
    return pictures[0] if len(pictures) == 1 else None


def naming_question(chats: Sequence[Chat], language: str) -> list[dict[str, Any]] | None:
    """The question for a picture's name, as the first such chat of the language puts it; None when there is none.

    One wording for all pictures of a language: so the answer to another picture is what the shuffled control needs.
    """
    for chat in chats:
        if chat.kind == NAMING_KIND and chat.language == language and picture_of(chat.question) is not None:
            return chat.question
    return None


def replace_picture(messages: Sequence[Mapping[str, Any]], picture: str) -> list[dict[str, Any]]:
    """The same messages about another picture."""

    def part_of(part: Mapping[str, Any]) -> dict[str, Any]:
        return {**part, "picture": picture} if part["type"] == "image" else dict(part)

    return [
        {**message, "content": message["content"]}
        if isinstance(message["content"], str)
        else {**message, "content": [part_of(part) for part in message["content"]]}
        for message in messages
    ]


def text_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of the last message."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")
