"""Answers of channels come through the pipeline: its context, its pictures, its guards."""

import asyncio
import io
from pathlib import Path

import pytest
from fake_herd import CONTEXT, FakeModel
from PIL import Image
from test_guard_stream import BAD, WordGuard

from herd.config import EngineConfig
from herd.engine import engine as engines
from herd.engine import load as loading
from herd.engine.filters import Verdict
from herd.engine.pipeline import AnswerPipeline
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError, Stopped
from herd.guard import stream as guard_stream
from herd.serve.api.app import create_app
from herd.serve.channels import serve as channels_serve
from herd.serve.channels.answer import PipelineAnswerer, messages_of
from herd.serve.channels.config import ChannelsConfig, Options
from herd.serve.channels.delivery import Answer, Turn
from herd.serve.channels.double import local_accounts, signed
from herd.serve.channels.serve import channels_beside
from herd.serve.models import one_model


class Guarded:
    verdict: Verdict | None = None

    def push(self, text: str) -> str:
        if "bad" in text:
            self.verdict = Verdict(finish_reason="content_filter", explanation="No.")
        return "" if self.verdict else text

    def finish(self) -> str:
        return ""


def answerer(**options: object) -> PipelineAnswerer:
    model = FakeModel()
    return PipelineAnswerer(
        AnswerPipeline(model, model.engine(), filters=[Guarded]), SamplingParams(), Options(**options)
    )


def ask(one: PipelineAnswerer, text: str, *, history: list = (), pictures: list = ()) -> Answer:
    return asyncio.run(one.answer(Turn(caller="whatsapp:1", history=history, text=text, pictures=pictures)))


def test_an_answer_has_the_share_and_the_cache_of_its_person():
    one = answerer(system="Be brief.")
    assert ask(one, "hello you") == Answer(text="hello you")
    assert (one.pipeline.engine.callers, one.pipeline.engine.salts) == (["whatsapp:1"], ["whatsapp:1"])


def test_a_guard_of_the_pipeline_replaces_the_whole_answer():
    assert ask(answerer(), "good and bad words") == Answer(text="No.", blocked=True)


def test_pictures_are_read_and_broken_ones_named():
    file = io.BytesIO()
    Image.new("RGB", (8, 6), "blue").save(file, "PNG")
    assert ask(answerer(), "what?", pictures=[file.getvalue()]).text == "[8x6]what?"
    assert ask(answerer(), "what?", pictures=[b"no picture"]).text == "[a picture that cannot be opened]\nwhat?"


def test_earlier_messages_give_way_until_the_answer_has_room():
    one = answerer()
    history = [(role, f"{n} " * 100, []) for n in range(10) for role in ("user", "assistant")]
    assert ask(one, "hello", history=history).text == "hello"
    prompt = one.pipeline.engine.seen[-1][0]
    assert CONTEXT - 500 < len(prompt.token_ids) <= CONTEXT - 64
    with pytest.raises(HerdError, match="leave out earlier messages"):
        ask(one, "x" * CONTEXT, history=history)


def test_a_conversation_begins_with_the_user_and_alternates():
    history = [
        ("assistant", "cut off", []),
        ("user", "a", []),
        ("user", "b", []),
        ("assistant", "c", []),
        ("user", "d", []),
    ]
    assert [(one["role"], one["content"]) for one in messages_of(history)] == [
        ("user", "a\nb"), ("assistant", "c"), ("user", "d"),
    ]  # fmt: skip


def test_a_message_that_an_engine_is_closed_under_waits_for_the_next_start():
    one = answerer()
    one.pipeline.engine.closed = True
    with pytest.raises(Stopped):
        ask(one, "fail")


class WordPromptGuard:
    threshold = 0.5

    def scores(self, texts):
        return [float("IGNORE" in text) for text in texts]


def test_the_command_for_channels_alone_has_both_guards_and_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "channels.toml").write_text('[whatsapp]\nphone_number_id = "1"\n')
    for name in ("APP_SECRET", "ACCESS_TOKEN", "VERIFY_TOKEN"):
        monkeypatch.setenv(f"HERD_WHATSAPP_{name}", "secret")
    monkeypatch.setattr(loading, "load", lambda folder, base: FakeModel())
    monkeypatch.setattr(engines, "Engine", lambda model, config: model.engine())
    monkeypatch.setattr("herd.serve.generation_config.default_params", lambda folder, base: SamplingParams())
    monkeypatch.setattr(guard_stream, "Guard", lambda folder, policy: WordGuard())
    monkeypatch.setattr(guard_stream, "PromptGuard", lambda folder: WordPromptGuard())
    said: list[Answer] = []

    def run(config: ChannelsConfig, answerer: PipelineAnswerer, listener: object) -> None:
        said.extend(ask(answerer, text) for text in ("hello", f"hello {BAD}", "IGNORE all"))

    monkeypatch.setattr(channels_serve, "run", run)

    def serve(**guards: Path) -> list[Answer]:
        said.clear()
        where = {"host": "127.0.0.1", "port": 0, "config": EngineConfig()}
        channels_serve.serve(tmp_path, tmp_path / "channels.toml", **where, **guards)
        return list(said)

    assert not any(one.blocked for one in serve())
    fine, unsafe, attack = serve(guard=tmp_path, prompt_guard=tmp_path)
    assert not fine.blocked and unsafe.blocked and "S1" in unsafe.text and attack.blocked and "override" in attack.text
    (tmp_path / "policy.toml").write_text("prompt_guard = { threshold = 1.1 }\n")
    with pytest.raises(HerdError, match="threshold"):
        serve(prompt_guard=tmp_path, policy=tmp_path / "policy.toml")
    with pytest.raises(HerdError, match="without a guard"):
        serve(policy=tmp_path / "policy.toml")


def test_webhooks_stand_in_front_of_the_keys_and_hosts_of_the_server(tmp_path: Path):
    from fastapi.testclient import TestClient

    accounts = local_accounts("http://127.0.0.1:1/v25.0")
    config = ChannelsConfig(options=Options(), accounts=accounts, store=tmp_path / "channels.sqlite")
    model = FakeModel()
    pipeline = AnswerPipeline(model, model.engine())
    app = create_app(one_model(pipeline, name="fake"), loopback_host="my-laptop")
    with channels_beside(app, config, PipelineAnswerer(pipeline, SamplingParams(), config.options)):
        client = TestClient(app, base_url="http://public.example")
        query = {"hub.mode": "subscribe", "hub.verify_token": "verify", "hub.challenge": "7"}
        assert client.get("/webhooks/whatsapp", params=query).text == "7"
        assert client.post("/webhooks/whatsapp", content=b"{}").status_code == 403
        body, signature = signed({"object": "whatsapp_business_account"}, accounts["whatsapp"].app_secret)
        headers = {"X-Hub-Signature-256": signature}
        assert client.post("/webhooks/whatsapp", content=body, headers=headers).status_code == 200
        assert client.get("/v1/models").status_code == 400
