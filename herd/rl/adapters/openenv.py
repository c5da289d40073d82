"""Servers of OpenEnv as environments: `openenv/http://host:8000`; needs `pip install 'herd-lm[openenv]'`.

A server keeps an episode for each connection, and an environment here keeps nothing: an episode is begun anew for each
answer, with the seed in the prompt, and goes through the answers before it again. So an answer has the same reaction
after a restart, if the server's episodes are functions of their seed and actions, and an episode of n turns costs n²/2
steps. The reward is the sum of an episode's rewards. An action with one text is the answer; any other is the answer
read as JSON, and one that the server does not accept is worth nothing.
Held-out episodes have other seeds; whether they have other content is the server's affair.
"""

import json
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from herd.core.streams import seed_of
from herd.data.tasks.task import Messages
from herd.errors import HerdError
from herd.rl.environment import Reaction, text_of

COMMON = {"done", "reward", "metadata"}
"""Fields of every action or observation."""
REFUSED = "code: VALIDATION_ERROR"
TIMEOUT_S = 60.0
MOST_TURNS = 16


class OpenEnvironment:
    """The episodes of one server."""

    cells: Sequence[str] = ("episode",)
    tools: Sequence[Mapping[str, Any]] = ()

    def __init__(self, url: str, *, seed: int, heldout: bool = False) -> None:
        """Raises HerdError where the package or the server is not there."""
        try:
            from openenv.core import GenericEnvClient
        except ImportError as error:
            raise HerdError(f"openenv/{url} needs openenv ({error}): pip install 'herd-lm[openenv]'") from None
        self._client, self._url = GenericEnvClient, url.rstrip("/")
        self._seed, self._heldout = seed, heldout
        try:
            with urllib.request.urlopen(f"{self._url}/schema", timeout=TIMEOUT_S) as answer:
                fields = json.load(answer)["action"]["properties"]
        except (OSError, ValueError, KeyError) as error:
            raise HerdError(f"no server of OpenEnv answers at {self._url} ({error}): start it first") from None
        own = [name for name in fields if name not in COMMON]
        self._text = own[0] if len(own) == 1 and fields[own[0]].get("type") == "string" else None

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        kind = "heldout" if self._heldout else "train"
        episode = seed_of(self._seed, "openenv", kind, index) % 2**31
        with self._open() as session:
            first = session.reset(seed=episode)
        return [{"role": "user", "content": _said(first.observation), "episode": episode}]

    def respond(self, messages: Messages, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        episode = next((one["episode"] for one in messages if "episode" in one), None)
        if episode is None:
            raise HerdError("the conversation does not begin with a prompt of this server")
        before = [text_of(one) for one in messages if one.get("role") == "assistant"]
        total = 0.0
        with self._open() as session:
            session.reset(seed=episode)
            for text in [*before, text_of(answer)]:
                try:
                    result = session.step(self._action(text))
                except (ValueError, RuntimeError) as error:
                    if isinstance(error, RuntimeError) and REFUSED not in str(error):
                        raise
                    return Reaction(reward=0.0, parts={"accepted": 0.0})
                total += float(result.reward or 0)
        if not result.done and len(before) + 1 < MOST_TURNS:
            return Reaction(reward=None, messages=({"role": "user", "content": _said(result.observation)},))
        return Reaction(reward=total, parts={"accepted": 1.0, "done": float(result.done)})

    def _open(self) -> Any:
        return self._client(base_url=self._url, message_timeout_s=TIMEOUT_S).sync()

    def _action(self, text: str) -> dict[str, Any]:
        """Raises ValueError where the answer is none."""
        if self._text is not None:
            return {self._text: text}
        try:
            action = json.loads(text)
        except RecursionError:
            raise ValueError("too deep") from None
        if not isinstance(action, dict):
            raise ValueError("not an object")
        return action


def _said(observation: Mapping[str, Any]) -> str:
    """An observation as a message: its text, where it has nothing else, or JSON."""
    own = {name: value for name, value in observation.items() if name not in COMMON}
    [value] = own.values() if len(own) == 1 else [own]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
