"""Guards inside a conversation: what is asked is judged before the model reads it, and the reply in chunks, none of
which is shown before its verdict.

A chunk is judged together with the reply before it, so that what is harmless in pieces is judged whole. The reply ends
at the first unsafe chunk. Where a guard fails or takes too long, nothing is shown (it fails closed) and the reason is
named. A prompt guard reads what is new since the model's last message, results of tools included: instructions hide
there.
"""

import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from herd.data.tokens.chat import parts_of
from herd.engine.filters import Verdict as Ended
from herd.errors import HerdError
from herd.guard.model_guard import Guard, Verdict
from herd.guard.prompt_guard.guard import PromptGuard
from herd.guard.served_policy import NONE, Exceptions, ServedPolicy, read_served_policy
from herd.guard.taxonomy import Taxonomy

BLOCKED = "content_filter"
"""The finish reason of what a guard ended, as OpenAI has it."""
CHUNK_CHARS = 200
TIMEOUT_S = 60.0
"""Of a short message a verdict takes milliseconds, of one of 8,192 tokens half a minute on a slow processor."""
MAX_VERDICTS = 64
"""That are computed at a time. Those of a guard that hangs are never done."""
T = TypeVar("T")


class TimeLimit:
    """Does work in threads of its own and waits for it for so long at most."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._slots = threading.Semaphore(MAX_VERDICTS)

    def run(self, work: Callable[[], T]) -> T:
        """What `work` gives. Raises what it raises, and HerdError where it takes too long: it goes on alone."""
        end_s = time.monotonic() + self.timeout_s
        done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def thread() -> None:
            try:
                done.put((work(), None))
            except BaseException as error:
                done.put((None, error))
            finally:
                self._slots.release()

        if self._slots.acquire(timeout=self.timeout_s):
            # A daemon: a guard that hangs does not keep the program from ending.
            threading.Thread(target=thread, name="herd-guard-verdict", daemon=True).start()
            try:
                result, error = done.get(timeout=max(0.0, end_s - time.monotonic()))
            except queue.Empty:
                pass
            else:
                if error is not None:
                    raise error
                return result  # type: ignore[return-value]
        raise HerdError(f"no verdict within {self.timeout_s:g} s")


def refusal(verdict: Verdict, policy: Taxonomy) -> str:
    """What is said in place of what was blocked."""
    named = ", ".join(f"{code} {policy[code].name}" for code in verdict.categories)
    return f"I can't help with that: the guard found {named}."


class GuardFilter:
    """The filter of one reply to `messages`."""

    def __init__(
        self,
        guard: Guard,
        messages: Sequence[Mapping[str, Any]],
        *,
        chunk_chars: int = CHUNK_CHARS,
        limit: TimeLimit | None = None,
        exceptions: Exceptions = NONE,
    ) -> None:
        self._guard, self._messages, self._chunk = guard, list(messages), chunk_chars
        self._limit, self._exceptions = limit or TimeLimit(TIMEOUT_S), exceptions
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
        asked = [*self._messages, {"role": "assistant", "content": so_far}]
        try:
            verdict = self._limit.run(lambda: self._guard.judge(asked))
        except Exception as error:  # whatever it is, nothing was judged
            self.verdict = Ended(finish_reason=BLOCKED, explanation=f"the guard failed ({error}): nothing is shown")
            return ""
        if is_blocked(verdict, self._exceptions):
            self.verdict = Ended(finish_reason=BLOCKED, explanation=refusal(verdict, self._guard.policy))
            return ""
        self._shown = so_far
        return text


class PassAll:
    """The filter where nothing judges replies."""

    verdict = None

    def push(self, text: str) -> str:
        return text

    def finish(self) -> str:
        return ""


class GuardGate:
    """Guards as the gate of a pipeline: they judge what is new before the model reads it, and the reply."""

    def __init__(
        self,
        guard: Guard | None,
        *,
        prompt_guard: PromptGuard | None = None,
        policy: ServedPolicy | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.guard, self.prompt_guard, self.policy = guard, prompt_guard, policy or ServedPolicy()
        self.limit = TimeLimit(timeout_s)

    def check(self, messages: Sequence[Mapping[str, Any]], caller: str = "") -> Ended | None:
        """The refusal of the last message where that is unsafe, tries to take over, or could not be judged."""
        exceptions = self.policy.of(caller)
        try:
            if self.prompt_guard and exceptions.prompt_guard and (found := self._attack(self.prompt_guard, messages)):
                return Ended(finish_reason=BLOCKED, explanation=found)
            if self.guard is None:
                return None
            guard = self.guard
            verdict = self.limit.run(lambda: guard.judge(messages))
        except Exception as error:  # whatever it is, nothing was judged
            explanation = f"The message could not be judged, so it was not read: {error}"
            return Ended(finish_reason=BLOCKED, explanation=explanation)
        if not is_blocked(verdict, exceptions):
            return None
        return Ended(finish_reason=BLOCKED, explanation=refusal(verdict, self.guard.policy))

    def filter(self, messages: Sequence[Mapping[str, Any]], caller: str = "") -> GuardFilter | PassAll:
        """The filter of the reply to `messages`."""
        if self.guard is None:
            return PassAll()
        return GuardFilter(self.guard, messages, limit=self.limit, exceptions=self.policy.of(caller))

    def _attack(self, guard: PromptGuard, messages: Sequence[Mapping[str, Any]]) -> str:
        """Why the prompt guard lets these messages not pass; empty where it does."""
        texts = [text for text in new_texts(messages) if text.strip()]
        threshold = guard.threshold if self.policy.prompt_threshold is None else self.policy.prompt_threshold
        if not texts or (worst := max(self.limit.run(lambda: guard.scores(texts)))) < threshold:
            return ""
        return (
            "I can't read that: the prompt guard takes it for an attempt to override instructions "
            f"(score {worst:.2f}, from {threshold:.2f} on)."
        )


def open_gate(
    guard: Path | None,
    prompt_guard: Path | None,
    policy: Path | None,
    *,
    key_names: Sequence[str] = (),
    timeout_s: float = TIMEOUT_S,
) -> GuardGate | None:
    """The guards in these folders, as a server's options name them, and the policy of a file; None without a guard.
    Raises HerdError where one cannot be opened, or there is a policy and nothing that it holds for; warns of a guard
    that is known to miss most."""
    if guard is None and prompt_guard is None:
        if policy:
            raise HerdError("--policy without a guard: name --guard or --prompt-guard")
        return None
    served = read_served_policy(policy, key_names=key_names) if policy else ServedPolicy()
    opened = Guard(guard, policy=served.taxonomy) if guard else None
    if opened and opened.weakness:
        print(f"warning: {guard} {opened.weakness}: train it longer, or take another", file=sys.stderr, flush=True)
    return GuardGate(
        opened,
        prompt_guard=PromptGuard(prompt_guard) if prompt_guard else None,
        policy=served,
        timeout_s=timeout_s,
    )


def new_texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The texts of the user and of tools since the model's last message."""
    found: list[str] = []
    for message in reversed(messages):
        if message["role"] == "assistant":
            break
        if message["role"] != "system":
            parts = parts_of(message)
            found.append("\n".join(part["text"] for part in parts if part["type"] == "text"))
    return found


def is_blocked(verdict: Verdict, exceptions: Exceptions) -> bool:
    """Whether something was found that this key is blocked for."""
    return verdict.unsafe and not (verdict.categories and exceptions.exclude.issuperset(verdict.categories))
