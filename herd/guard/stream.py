"""A guard inside a conversation: the user's message is judged before the model reads it, and the reply in chunks, none
of which is shown before its verdict.

A chunk is judged together with the reply before it, so that what is harmless in pieces is judged whole. The reply ends
at the first unsafe chunk. Where the guard fails, nothing is shown (it fails closed) and the reason is named.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from herd.engine.filters import Verdict as Ended
from herd.guard.model_guard import Guard, Verdict
from herd.guard.taxonomy import Taxonomy

BLOCKED = "content_filter"
"""The finish reason of what a guard ended, as OpenAI has it."""
CHUNK_CHARS = 200


def refusal(verdict: Verdict, policy: Taxonomy) -> str:
    """What is said in place of what was blocked."""
    named = ", ".join(f"{code} {policy[code].name}" for code in verdict.categories)
    return f"I can't help with that: the guard found {named}."


class GuardFilter:
    """The filter of one reply to `messages`."""

    def __init__(self, guard: Guard, messages: Sequence[Mapping[str, Any]], *, chunk_chars: int = CHUNK_CHARS) -> None:
        self._guard, self._messages, self._chunk = guard, list(messages), chunk_chars
        self._shown = self._held = ""
        self.verdict: Ended | None = None

    def push(self, text: str) -> str:
        if self.verdict:
            return ""
        self._held += text
        return self._release() if len(self._held) >= self._chunk else ""

    def finish(self) -> str:
        return self._release() if self._held and not self.verdict else ""

    def _release(self) -> str:
        """What is held back, if the guard calls the reply safe so far."""
        so_far = self._shown + self._held
        if not so_far.strip():  # there is nothing to judge yet
            return ""
        text, self._held = self._held, ""
        try:
            verdict = self._guard.judge([*self._messages, {"role": "assistant", "content": so_far}])
        except Exception as error:  # whatever it is, nothing was judged
            self.verdict = Ended(finish_reason=BLOCKED, explanation=f"the guard failed ({error}): nothing is shown")
            return ""
        if verdict.unsafe:
            self.verdict = Ended(finish_reason=BLOCKED, explanation=refusal(verdict, self._guard.policy))
            return ""
        self._shown = so_far
        return text


class GuardGate:
    """A guard as the gate of a pipeline: it judges the last message before the model reads it, and the reply."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    def check(self, messages: Sequence[Mapping[str, Any]]) -> Ended | None:
        """The refusal of the last message where that is unsafe or could not be judged."""
        try:
            verdict = self.guard.judge(messages)
        except Exception as error:  # whatever it is, nothing was judged
            explanation = f"The message could not be judged, so it was not read: {error}"
            return Ended(finish_reason=BLOCKED, explanation=explanation)
        if not verdict.unsafe:
            return None
        return Ended(finish_reason=BLOCKED, explanation=refusal(verdict, self.guard.policy))

    def filter(self, messages: Sequence[Mapping[str, Any]]) -> GuardFilter:
        """The filter of the reply to `messages`."""
        return GuardFilter(self.guard, messages)
