"""An answer by a model: the conversation as it is stored, through the pipeline of everything else, guards included."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from herd.data.media.image import read_picture
from herd.engine.conversation import Conversation
from herd.engine.pipeline import AnswerPipeline, ReplyRequest
from herd.engine.reply import join_reply
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError, Stopped
from herd.guard.stream import BLOCKED
from herd.serve.channels.config import Options
from herd.serve.channels.delivery import Answer, Turn

MIN_ROOM = 64
"""Tokens that an answer has room for at least, or earlier messages are left out."""
BROKEN = "[a picture that cannot be opened]"


class PipelineAnswerer:
    """Answers by `pipeline`, whose guards and filters judge both sides."""

    def __init__(self, pipeline: AnswerPipeline, params: SamplingParams, options: Options) -> None:
        self.pipeline, self.options = pipeline, options
        self.params = replace(params, max_tokens=min(params.max_tokens, options.max_tokens))

    async def answer(self, turn: Turn) -> Answer:
        """The whole answer. Raises HerdError where the new messages alone are longer than the context; Stopped where
        the engine has been closed."""
        request = self._request(messages_of([*turn.history, ("user", turn.text, turn.pictures)]))
        try:
            # Of each person a share of the engine and cached prefixes of their own.
            async with aclosing(self.pipeline.stream(request, caller=turn.caller, salt=turn.caller)) as stream:
                reply = join_reply([part async for part in stream])
        except Exception:
            if self.pipeline.engine.closed:
                raise Stopped("the engine is closed: re-run the same command, and the message is answered") from None
            raise
        if reply.finish_reason == BLOCKED:
            return Answer(text=reply.explanation or reply.text, blocked=True)
        return Answer(text=reply.text)

    def _request(self, messages: list[dict[str, Any]]) -> ReplyRequest:
        """The request; earlier messages are left out, oldest first, until an answer has room."""
        context, room = self.pipeline.engine.max_model_len, min(MIN_ROOM, self.params.max_tokens)
        while True:
            conversation = Conversation(messages, system=self.options.system or None)
            request = self.pipeline.request(conversation, self.params)
            starts = [i for i, one in enumerate(messages) if one["role"] == "user" and i]
            if len(request.prompt.token_ids) + room <= context or not starts:
                return self.pipeline.fit(request)
            messages = messages[starts[0] :]


def messages_of(history: Sequence[tuple[str, str, Sequence[bytes]]]) -> list[dict[str, Any]]:
    """Messages in OpenAI's form that begin with the user and alternate; of several in a row one is made."""
    joined: list[tuple[str, str, list[bytes]]] = []
    for role, text, pictures in history:
        if joined and joined[-1][0] == role:
            _, before, earlier = joined[-1]
            joined[-1] = (role, f"{before}\n{text}", [*earlier, *pictures])
        elif joined or role == "user":
            joined.append((role, text, list(pictures)))
    return [_message(role, text, pictures) for role, text, pictures in joined]


def _message(role: str, text: str, pictures: Sequence[bytes]) -> dict[str, Any]:
    opened: list[dict[str, Any]] = []
    for data in pictures:
        try:
            opened.append({"type": "image", "image": read_picture(data)})
        except HerdError:
            text = f"{BROKEN}\n{text}"
    return {"role": role, "content": [*opened, {"type": "text", "text": text}] if opened else text}
