"""herd.rl.adapters.openenv: a server's episodes, begun anew for each answer; against a server that speaks as OpenEnv's
does, with a client that is called as its is."""

import io
import json
import random
import sys
import types
from dataclasses import dataclass
from typing import Any

import pytest

from herd.errors import HerdError
from herd.rl.environment import open_environment

URL = "http://127.0.0.1:8000"


@dataclass
class Result:
    """A step's, with the fields of OpenEnv 0.10."""

    observation: dict[str, Any]
    reward: float | None = None
    done: bool = False


class Client:
    """A game of a number from 1 to 9 with hints; a session is one episode."""

    sessions, action = 0, {"text": {"type": "string"}}

    def __init__(self, base_url: str, message_timeout_s: float) -> None:
        assert base_url == URL

    def sync(self) -> "Client":
        return self

    def __enter__(self) -> "Client":
        Client.sessions += 1
        return self

    def __exit__(self, *_: object) -> None:
        Client.sessions -= 1

    def reset(self, *, seed: int) -> Result:
        self.number = random.Random(seed).randint(1, 9)
        return Result({"text": f"from 1 to 9, not {10 + seed % 90}", "done": False, "metadata": {}})

    def step(self, action: dict[str, Any]) -> Result:
        if set(action) != set(self.action):
            raise RuntimeError("Server error: text is missing (code: VALIDATION_ERROR)")
        if action["text"] == "crash":
            raise RuntimeError("Server error: it broke (code: EXECUTION_ERROR)")
        if action["text"] == str(self.number):
            return Result({"text": "right"}, 1.0, True)
        return Result({"text": "higher" if action["text"] < str(self.number) else "lower"}, -0.1)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    package = types.ModuleType("openenv.core")
    monkeypatch.setattr(package, "GenericEnvClient", Client, raising=False)
    monkeypatch.setitem(sys.modules, "openenv", types.ModuleType("openenv"))
    monkeypatch.setitem(sys.modules, "openenv.core", package)

    def answer(url: str, timeout: float) -> io.BytesIO:
        assert url == f"{URL}/schema"
        return io.BytesIO(json.dumps({"action": {"properties": {"metadata": {}, **Client.action}}}).encode())

    monkeypatch.setattr("urllib.request.urlopen", answer)
    return Client


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_an_episode_is_played_over_several_answers_and_the_same_again(server: type[Client]):
    game = open_environment(f"openenv/{URL}/", None, 1)
    for _ in range(2):
        messages = game.prompt("episode", 4)
        number = random.Random(messages[0]["episode"]).randint(1, 9)
        for guess in [one for one in range(1, 10) if one != number]:
            reaction = game.respond(messages, said(str(guess)))
            hint = "higher" if guess < number else "lower"
            assert reaction.reward is None and reaction.messages == ({"role": "user", "content": hint},)
            messages = [*messages, said(str(guess)), *reaction.messages]
        final = open_environment(f"openenv/{URL}", None, 1).respond(messages, said(str(number)))
        assert final.reward == pytest.approx(1 - 0.8) and final.parts == {"accepted": 1, "done": 1}
    assert server.sessions == 0


def test_episodes_are_functions_of_seed_split_and_index(server: type[Client]):
    def episodes(seed: int, *, heldout: bool = False) -> list[int]:
        game = open_environment(f"openenv/{URL}", None, seed, heldout=heldout)
        return [game.prompt("episode", i)[0]["episode"] for i in range(20)]

    assert episodes(1) == episodes(1) and len(set(episodes(1))) == 20
    assert not set(episodes(1)) & (set(episodes(2)) | set(episodes(1, heldout=True)))


def test_an_episode_without_end_is_ended(server: type[Client]):
    game = open_environment(f"openenv/{URL}", None, 1)
    messages = game.prompt("episode", 0)
    for _ in range(15):
        messages = [*messages, said("x"), *game.respond(messages, said("x")).messages]
    reaction = game.respond(messages, said("x"))
    assert len(messages) == 31 and reaction.reward == pytest.approx(-1.6) and reaction.parts["done"] == 0


def test_other_actions_are_answers_in_json_and_what_is_refused_is_worth_nothing(
    server: type[Client], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Client, "action", {"text": {"type": "string"}, "sure": {"type": "boolean"}})
    game = open_environment(f"openenv/{URL}", None, 1)
    prompt = game.prompt("episode", 0)
    assert game.respond(prompt, said('{"text": "0", "sure": true}')).messages[0]["content"] == "higher"
    for wrong in ("", "3", "[1]", '{"text": "3"}', "[" * 100_000):
        reaction = game.respond(prompt, said(wrong))
        assert reaction.reward == 0 and reaction.parts == {"accepted": 0}
    with pytest.raises(RuntimeError, match="EXECUTION_ERROR"):
        game.respond(prompt, said('{"text": "crash", "sure": true}'))
    assert server.sessions == 0


def test_what_is_missing_is_named(server: type[Client], monkeypatch: pytest.MonkeyPatch):
    def refused(url: str, timeout: float) -> None:
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    with pytest.raises(HerdError, match=f"no server of OpenEnv answers at {URL} .*: start it first"):
        open_environment(f"openenv/{URL}", None, 1)
    monkeypatch.setitem(sys.modules, "openenv.core", None)
    with pytest.raises(HerdError, match=r"pip install 'herd-lm\[openenv\]'"):
        open_environment(f"openenv/{URL}", None, 1)
