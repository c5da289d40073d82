"""Several models in one server: the request chooses, what is needed is loaded, and busy ones stay."""

import json
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import anthropic
import openai
import pytest
import torch
from fake_herd import FakeEngine, FakeModel
from fastapi.testclient import TestClient
from serve_world import Running, eventually, serving

from herd.cli import main
from herd.config import EngineConfig, ServeConfig
from herd.engine.pipeline import AnswerPipeline
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.model.formats import huggingface
from herd.model.formats.config_json import config_from_json
from herd.model.transformer import Transformer
from herd.serve import server as api
from herd.serve.api.app import create_app
from herd.serve.loading import model_sources, named_paths
from herd.serve.models import LocalModel, LocalModels, ModelSource, one_model

MB = 10**6


@dataclass
class World:
    """A server of fakes, and what was opened and closed."""

    port: int
    engines: dict[str, FakeEngine] = field(default_factory=dict)
    """The last one of each name."""
    opened: list[str] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    """Cleared, opening waits for it."""
    broken: set[str] = field(default_factory=set)

    def source(self, name: str, num_bytes: int, *, really: int | None = None) -> ModelSource:
        def open_model() -> LocalModel:
            self.opened.append(name)
            assert self.hold.wait(10)
            if name in self.broken:
                raise HerdError("its weights are gone")
            model = FakeModel(delay_s=0.002)
            engine = self.engines[name] = model.engine()
            pipeline = AnswerPipeline(model, engine)
            return LocalModel(name=name, pipeline=pipeline, params=SamplingParams(), num_bytes=really or num_bytes)

        return ModelSource(name=name, open=open_model, num_bytes=num_bytes)

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0)

    def ask(self, model: str, text: str = "a b", **options: object) -> object:
        messages = [{"role": "user", "content": text}]
        return self.client.chat.completions.create(model=model, messages=messages, **options)

    @property
    def in_memory(self) -> set[str]:
        return {name for name, engine in self.engines.items() if not engine.closed}


@contextmanager
def world(*sizes: tuple[str, int], memory: int | None = None, really: int | None = None) -> Iterator[World]:
    with api.listen("127.0.0.1", 0) as listener:
        one = World(listener.getsockname()[1])
        one.hold.set()
        models = LocalModels([one.source(name, size, really=really) for name, size in sizes], memory=memory)
        models.open_default()
        with serving(create_app(models, loopback_host="127.0.0.1"), models, listener):
            yield one
        assert one.in_memory == set()


def test_the_model_of_a_request_chooses_in_every_api_and_is_opened_when_it_is_asked_for():
    with world(("a", MB), ("b", MB), ("c", MB)) as one:
        assert [model.id for model in one.client.models.list()] == ["a", "b", "c"]
        listed = one.client.models.retrieve("b")
        assert listed.id == "b" and not hasattr(listed, "max_model_len")  # not before it is open
        assert one.opened == ["a"]
        assert one.ask("b").model == "b" and one.opened == ["a", "b"]
        assert one.client.models.retrieve("b").max_model_len == 2000
        url = f"http://127.0.0.1:{one.port}"
        client, claude = one.client, anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
        talk = [{"role": "user", "content": "x y"}]
        answers = [
            client.completions.create(model="b", prompt="x"),
            client.responses.create(model="b", input="x"),
            claude.messages.create(model="b", messages=talk, max_tokens=9),
            client.embeddings.create(model="b", input="x"),
        ]
        assert [answer.model for answer in answers] == ["b"] * 4
        for part in claude.messages.create(model="b", messages=talk, max_tokens=9, stream=True):
            assert part.type != "message_start" or part.message.model == "b"
        assert len(one.engines["a"].seen) == 0 and len(one.engines["b"].seen) == 5
        raw = Running(FakeModel(), one.port).raw
        for path, body in (
            ("/tokenize", {"prompt": "the cat"}),
            ("/detokenize", {"tokens": [97]}),
            ("/v1/messages/count_tokens", {"messages": talk}),
        ):
            assert raw(json.dumps(body | {"model": "c"}).encode(), path=path)[0] == 200, path
            status, answer = raw(json.dumps(body | {"model": "d"}).encode(), path=path)
            assert status == 404 and b"'a', 'b', 'c'" in answer
        assert raw(b"", path="/tokenizer_info?model=c", method="GET")[0] == 200
        for _ in range(20):  # whose body, which is none, has not been read when it is refused: some were never answered
            assert raw(b"", path="/tokenizer_info?model=d", method="GET")[0] == 404
        assert one.opened == ["a", "b", "c"]
        for asked in (one.ask, lambda model: client.embeddings.create(model=model, input="x"), client.models.retrieve):
            with pytest.raises(openai.NotFoundError, match="'d' is not served here: use one of 'a', 'b', 'c'"):
                asked("d")
        with pytest.raises(anthropic.NotFoundError, match="use one of 'a', 'b', 'c'"):
            claude.messages.create(model="d", messages=talk, max_tokens=9)


def test_what_was_not_used_for_longest_is_closed_for_another():
    with world(("a", 2 * MB), ("b", 2 * MB), ("c", 2 * MB), memory=5 * MB) as one:
        one.ask("b")
        one.ask("a")
        assert one.in_memory == {"a", "b"}
        assert len(one.client.models.list().data) == 3  # which is no use of any
        assert one.ask("c").model == "c"
        assert one.in_memory == {"a", "c"} and one.engines["b"].closed
        one.ask("b")
        assert one.in_memory == {"b", "c"}
        assert one.ask("a", stream=False).choices[0].message.content == "a b"
        assert one.opened == ["a", "b", "c", "b", "a"]


def test_a_model_that_answers_is_never_closed_and_what_it_leaves_no_room_for_is_refused_with_figures():
    with world(("a", 3 * MB), ("b", 3 * MB), memory=5 * MB) as one:
        stream = one.ask("a", "count", stream=True)
        next(iter(stream))
        with pytest.raises(openai.InternalServerError, match=r"needs 3.00 MB .* 2.00 MB are left while 'a' \(1 req"):
            one.ask("b")
        with pytest.raises(openai.APIStatusError) as caught:
            one.client.embeddings.create(model="b", input="x")
        assert caught.value.status_code == 503 and caught.value.response.headers["Retry-After"] == "5"
        assert one.in_memory == {"a"} and one.opened == ["a"]
        stream.close()
        assert eventually(lambda: one.engines["a"].running == 0)
        assert eventually(lambda: not_refused(one)) and one.in_memory == {"b"}


def not_refused(one: World) -> bool:
    try:
        return one.ask("b").model == "b"
    except openai.InternalServerError:
        return False


def test_what_is_larger_than_the_whole_budget_is_refused_for_good():
    with world(("a", MB), ("b", 7 * MB), memory=5 * MB) as one:
        with pytest.raises(
            openai.APIStatusError, match=r"'b' needs 7\.00 MB of memory, more than the 5.00 MB"
        ) as caught:
            one.ask("b")
        assert caught.value.status_code == 507 and one.in_memory == {"a"}
    with pytest.raises(HerdError, match=r"more than the 1\.00 MB of --memory"), world(("a", 2 * MB), memory=MB):
        pass


def test_a_model_that_turns_out_larger_than_it_looked_is_closed_again():
    with pytest.raises(HerdError, match=r"needs 9\.00 MB"), world(("a", MB), memory=5 * MB, really=9 * MB):
        pass
    one = World(0)
    one.hold.set()
    models = LocalModels([one.source("a", MB), one.source("b", MB, really=9 * MB)], memory=5 * MB)
    models.open_default()
    answer = TestClient(create_app(models)).post("/v1/completions", json={"model": "b", "prompt": "x"})
    assert answer.status_code == 507 and "'b' needs 9.00 MB" in answer.json()["error"]["message"]
    assert one.engines["b"].closed and one.in_memory == {"a"}


def test_a_model_is_opened_once_for_all_who_wait_for_it_also_where_one_goes_away():
    with world(("a", MB), ("b", MB)) as one:
        one.hold.clear()
        with pytest.raises(openai.APITimeoutError):
            one.ask("b", timeout=0.2)
        answers: list[object] = []
        threads = [threading.Thread(target=lambda: answers.append(one.ask("b"))) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert one.ask("a").model == "a"  # which nobody waits for
        one.hold.set()
        for thread in threads:
            thread.join(10)
        assert [answer.model for answer in answers] == ["b"] * 3
        assert one.opened == ["a", "b"]


def test_a_model_that_cannot_be_opened_is_named_and_tried_again():
    with world(("a", MB), ("b", MB)) as one:
        one.broken.add("b")
        with pytest.raises(openai.InternalServerError, match="'b' cannot be opened: its weights are gone"):
            one.ask("b")
        assert one.ask("a").model == "a"
        one.broken.clear()
        assert one.ask("b").model == "b"


def test_a_pinned_model_is_never_closed():
    one = World(0)
    one.hold.set()
    models = LocalModels([one.source("a", MB), one.source("b", MB)], memory=MB)
    models.open_default()
    assert models.pin_default().name == "a"
    client = TestClient(create_app(models))
    answer = client.post("/v1/completions", json={"model": "b", "prompt": "x"})
    assert answer.status_code == 507 and "are held for channels" in answer.json()["error"]["message"]
    assert one.in_memory == {"a"}


def test_the_memory_of_a_closed_model_is_free_before_the_next_one_is_opened(tiny_folder: Path):
    config = EngineConfig(max_num_seqs=1, max_model_len=64, kv_cache_memory_bytes=4 * MB)
    named = {"a": tiny_folder, "b": tiny_folder}
    sources = model_sources(named, config, gate=None, base=None, draft_model=None)
    weights: list[weakref.ref[object]] = []

    def watched(source: ModelSource) -> ModelSource:
        def open_model() -> LocalModel:
            assert [one() for one in weights] == [None] * len(weights)
            model = source.open()
            weights.append(weakref.ref(model.pipeline.model.transformer))
            return model

        return replace(source, open=open_model)

    models = LocalModels([watched(source) for source in sources], memory=int(1.5 * sources[0].num_bytes))
    models.open_default()
    with TestClient(create_app(models)) as client:
        for name in ("a", "b", "a"):
            body = {"model": name, "prompt": "the cat", "max_tokens": 2}
            assert client.post("/v1/completions", json=body).json()["model"] == name
    assert len(weights) == 3
    models.close()


def test_names_are_those_of_folders_or_given(tmp_path: Path):
    odd = tmp_path / "x=y"
    odd.mkdir()
    assert named_paths([str(tmp_path), "b=/c/d", str(odd)]) == {
        tmp_path.name: tmp_path, "b": Path("/c/d"), "x=y": odd,
    }  # fmt: skip
    with pytest.raises(HerdError, match="both named 'd': write NAME=/e/d"):
        named_paths(["/c/d", "/e/d"])
    with pytest.raises(HerdError, match="write NAME=PATH"):
        named_paths(["=/c/d"])
    with pytest.raises(HerdError, match="--memory 0 must be at least 1"):
        ServeConfig(memory=0)


@pytest.fixture(scope="module")
def formats(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in every form that is served."""
    there = tmp_path_factory.mktemp("formats")
    config = replace(config_from_json(tiny_folder), head_dim=48)  # Meta's code has no other
    source = there / "folder"
    source.mkdir()
    for path in tiny_folder.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    torch.manual_seed(0)
    model = Transformer(config).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.05)
    huggingface.save(model, source, dtype=torch.float32)
    found = {"folder": source, "meta": there / "meta", "gguf": there / "model.gguf", "int8": there / "int8"}
    for name, options in (("meta", ("--shards", "1")), ("gguf", ("--text-only",)), ("int8", ("--quantize", "int8"))):
        assert main(["convert", str(source), str(found[name]), *options]) == 0
    return found


@pytest.mark.slow
def test_a_gguf_a_meta_folder_and_a_quantised_one_answer_beside_each_other_as_the_folder_does(formats):
    config = EngineConfig(max_num_seqs=2, max_model_len=256)
    sources = model_sources(formats, config, gate=None, base=None, draft_model=None)
    opened = {source.name: source.open() for source in sources}
    try:
        for source in sources:  # what is reserved before it is opened
            assert source.num_bytes == pytest.approx(opened[source.name].num_bytes, rel=0.1), source.name
        texts = {}
        for name, model in opened.items():
            client = TestClient(create_app(one_model(model.pipeline, name=name, params=model.params)))
            body = {"model": name, "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 8}
            answer = client.post("/v1/chat/completions", json=body | {"temperature": 0})
            assert answer.status_code == 200, answer.text
            texts[name] = answer.json()["choices"][0]["message"]["content"]
        assert texts["meta"] == texts["gguf"] == texts["folder"]
        assert answer.json()["usage"]["completion_tokens"] > 0
    finally:
        for model in opened.values():
            model.pipeline.engine.close()
