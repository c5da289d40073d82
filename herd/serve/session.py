"""One user's conversation with the model, turn by turn: what the terminal and messengers hold for each user."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from herd.engine.conversation import Conversation
from herd.engine.pipeline import AnswerPipeline
from herd.engine.reply import Reply, join_reply
from herd.engine.sampler import SamplingParams
from herd.guard.stream import BLOCKED


class ChatSession:
    """A conversation that continues from the pipeline's replies."""

    def __init__(self, pipeline: AnswerPipeline, params: SamplingParams, *, system: str | None = None) -> None:
        self.pipeline, self.params = pipeline, params
        self.conversation = Conversation(system=system)
        self.num_tokens = 0
        """Of the context that the conversation takes up."""

    def reset(self) -> None:
        """Begin again, with the same system message."""
        self.conversation = Conversation(system=self.conversation.system)

    async def ask(self, text: str) -> AsyncGenerator[Reply, None]:
        """The reply to `text` in parts. Closed early, what came by then stays in the conversation."""
        parts: list[Reply] = []
        self.conversation.add_user(text)
        asked = True
        try:
            request = self.pipeline.fit(self.pipeline.request(self.conversation, self.params))
            self.num_tokens = len(request.prompt.token_ids)
            async with aclosing(self.pipeline.stream(request)) as stream:
                async for part in stream:
                    if part.refused:
                        # The model never reads it: what is blocked is no part of the conversation, nor are its
                        # pictures.
                        self.conversation.undo_user()
                        self.conversation.attached = []
                        asked = False
                        yield replace(part, text=part.explanation)
                        return
                    if part.finish_reason == BLOCKED:
                        gap = "\n\n" if any(one.text for one in parts) or part.text else ""
                        part = replace(part, text=f"{part.text}{gap}{part.explanation}")
                    parts.append(part)
                    self.num_tokens += part.num_tokens
                    yield part
        finally:
            text = "".join(part.text for part in parts)
            if parts and parts[-1].finish_reason:
                self.conversation.add_reply(join_reply(parts))
            elif text:
                self.conversation.add({"role": "assistant", "content": text})
            elif asked:  # stopped before the first word, it was never asked: a picture still waits for its question
                self.conversation.undo_user()
