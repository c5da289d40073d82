"""From the engine's pieces to a reply: filters, then tool calls.

    pieces, without stop strings (herd.engine.answer)  ->  filters  ->  tool calls  ->  parts of the reply

One `ReplyBuilder` serves one reply, without knowing how the pieces come: `herd.engine.pipeline` feeds it.
"""

import logging
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from herd.data.tokens.tool_calls import Call, CallFilter
from herd.engine.answer import Piece, TokenLogprob
from herd.engine.filters import StreamFilter, Verdict

log = logging.getLogger("herd.reply")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A reply; in a stream, what one step adds to it."""

    text: str
    finish_reason: str | None
    """None but for the last part. `stop`: at an end token or a stop string; `length`: at the limit of tokens;
    `tool_calls`; or a filter's reason."""
    num_tokens: int
    """That were generated, shown or not."""
    tool_calls: tuple[Call, ...] = ()
    """With the last part."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Where they were asked for; under filters with the last part, and not at all where one ended the reply."""
    explanation: str = ""
    """Of the filter that ended the reply, or of the gate that refused the request."""
    refused: bool = False
    """Whether the gate refused the request: the model never read it."""
    stop_string: str = ""
    """The one that ended the reply."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """With the first part, where they were asked for: of every token of the prompt but the first."""

    @property
    def mean_logprob(self) -> float:
        return sum(one.logprob for one in self.logprobs) / max(1, len(self.logprobs))

    def as_message(self) -> dict[str, Any]:
        """The assistant's message in OpenAI's form, to go on from; its tool calls get new ids."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        return message | ({"tool_calls": tool_call_objects(self.tool_calls)} if self.tool_calls else {})


def join_reply(parts: Iterable[Reply]) -> Reply:
    """The whole reply from its parts, the last of which has a finish reason."""
    parts = list(parts)
    assert parts and parts[-1].finish_reason is not None, "a reply has a last part"
    return Reply(
        text="".join(part.text for part in parts),
        finish_reason=parts[-1].finish_reason,
        num_tokens=sum(part.num_tokens for part in parts),
        tool_calls=parts[-1].tool_calls,
        logprobs=tuple(one for part in parts for one in part.logprobs),
        explanation=parts[-1].explanation,
        refused=parts[-1].refused,
        stop_string=parts[-1].stop_string,
        prompt_logprobs=parts[0].prompt_logprobs,
    )


def tool_call_objects(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Calls in OpenAI's form, with new ids."""
    return [
        {
            "id": f"call_{uuid.uuid4().hex}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments_json},
        }
        for call in calls
    ]


class ReplyBuilder:
    """Makes one reply from the pieces of one answer."""

    def __init__(
        self,
        tool_names: Collection[str] = (),
        filters: Sequence[StreamFilter] = (),
        *,
        prompt_ids: Sequence[int] = (),
    ) -> None:
        self._calls, self._filters, self._prompt_ids = CallFilter(tool_names), filters, prompt_ids
        self._logprobs: list[TokenLogprob] = []

    def push(self, piece: Piece) -> Reply:
        """What the piece adds. Once the part has a finish reason, no piece may follow: stop the generation."""
        text, verdict = self._filtered(piece)
        reason, calls = piece.finish_reason, tuple[Call, ...]()
        # Clients expect no log-probability of the end token.
        logprobs = piece.logprobs[: len(piece.token_ids)]
        if self._filters:  # the tokens would give away what a filter holds back or replaces
            self._logprobs += logprobs
            logprobs = tuple(self._logprobs) if reason and not verdict else ()
        if verdict:
            # What the parser of calls holds is dropped: a call that a filter interrupted must not be made.
            reason = verdict.finish_reason
        else:
            text = self._calls.push(text)
            if reason:
                rest = self._calls.finish(cut=reason == "length")
                if rest.reason:
                    log.info("what began like a tool call is text: %s", rest.reason)
                text, calls = text + rest.text, rest.calls
                reason = "tool_calls" if calls and not rest.cut else reason
        return Reply(
            text=text,
            finish_reason=reason,
            num_tokens=len(piece.token_ids),
            tool_calls=calls,
            logprobs=logprobs,
            explanation=verdict.explanation if verdict else "",
            stop_string="" if verdict else piece.stop_string,
            prompt_logprobs=self._of_prompt(piece),
        )

    def _of_prompt(self, piece: Piece) -> tuple[TokenLogprob, ...]:
        top = piece.prompt_top or ((),) * len(piece.prompt_logprobs)
        tokens = self._prompt_ids[1:]
        return tuple(
            TokenLogprob(token_id=token, logprob=logprob, sampled_logprob=logprob, top=pairs)
            for token, logprob, pairs in zip(tokens, piece.prompt_logprobs, top, strict=False)
        )

    def _filtered(self, piece: Piece) -> tuple[str, Verdict | None]:
        """The text behind the last filter, and the verdict of the first that has one."""
        text = piece.text
        for i, one in enumerate(self._filters):
            text = one.push(text)
            if piece.finish_reason and not one.verdict:
                text += one.finish()
            if one.verdict:
                for later in self._filters[i + 1 :]:
                    text = later.push(text)
                    text += later.finish()
                return text, one.verdict
        return text, None
