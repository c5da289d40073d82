"""The requests of PurpleLlama's CyberSecEval runner, as its OpenAI client sends them, are answered.

The forms are those of CybersecurityBenchmarks/benchmark/llms/openai.py (2025 to 2026): temperature 0.6, top_p 0.9, no
limit of tokens, `response_format` null or a JSON object, pictures as data URLs with a blank after the comma. Its own
class is not used: these are its calls.
"""

import base64
import io
import json
import threading
from collections.abc import Iterator

import openai
import pytest
from fake_herd import FakeModel
from PIL import Image
from serve_world import Running, running_server, serving

from herd.engine.pipeline import AnswerPipeline
from herd.serve import server as api
from herd.serve.models import one_model

GIVEN = {"temperature": 0.6, "top_p": 0.9, "max_completion_tokens": openai.NOT_GIVEN}
SCHEMA = '{"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}'


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running_server() as running:
        yield running


def create(server: Running, messages: list[dict], **options: object) -> str:
    client = openai.OpenAI(api_key="KEY", base_url=f"http://127.0.0.1:{server.port}/v1", default_headers=None)
    response = client.chat.completions.create(model="fake", messages=messages, **GIVEN, **options)
    content = response.choices[0].message.content
    assert isinstance(content, str)  # the runner uses it as text
    return content


def png() -> str:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), "blue").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_query_and_query_with_a_system_prompt(server: Running):
    assert create(server, [{"role": "user", "content": "hello there"}], response_format=None) == "hello there"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello there"}]
    assert create(server, messages, response_format=None) == "hello there"
    _, params = server.model.last_engine.seen[-1]
    assert (params.temperature, params.top_p) == (0.6, 0.9)


def test_null_is_sent_for_the_form_of_the_answer(server: Running):
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "response_format": None}
    status, answer = server.raw(json.dumps(body | {"temperature": 0.6, "top_p": 0.9}).encode())
    assert (status, json.loads(answer)["choices"][0]["message"]["content"]) == (200, "hi")


def test_a_json_object_is_asked_for_as_canary_exploits_do(server: Running):
    messages = [
        {"role": "system", "content": f"You are a helpful assistant. Follow this schema: {SCHEMA}"},
        {"role": "user", "content": "hi"},
    ]
    create(server, messages, response_format={"type": "json_object"})
    _, params = server.model.last_engine.seen[-1]
    assert params.structure is not None


def test_chat_with_history(server: Running):
    messages = [
        {"role": "system", "content": "You write mails."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "second"},
        {"role": "user", "content": "third"},
    ]
    assert create(server, messages, response_format=None) == "third"


def test_a_picture_as_a_data_url_with_a_blank(server: Running):
    url = f"data:image/png;base64, {png()}"
    parts = [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "system", "content": "Look."}, {"role": "user", "content": parts}]
    assert create(server, messages, response_format=None).startswith("[")
    prompt, _ = server.model.last_engine.seen[-1]
    assert len(prompt.tiles) == 1


def test_a_multimodal_query_of_text_alone(server: Running):
    assert create(server, [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]) == "hello"


def test_sound_is_refused_by_name_so_that_its_retries_show_why(server: Running):
    part = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    with pytest.raises(openai.BadRequestError, match="part is an object of type"):
        create(server, [{"role": "user", "content": [part]}])


def test_twenty_threads_as_with_run_llm_in_parallel(server: Running):
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        messages = [{"role": "user", "content": f"hello {number}"}]
        answers[number] = create(server, messages, response_format=None)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: f"hello {number}" for number in range(20)}


def test_the_server_is_reached_by_its_ipv6_address():
    model = FakeModel()
    try:
        listener = api.listen("::1", 0)
    except Exception as error:
        pytest.skip(f"this machine has no ::1: {error}")
    engine = model.engine()
    app = api.create_app(one_model(AnswerPipeline(model, engine), name="fake"), loopback_host="my-laptop")
    with serving(app, engine, listener):
        port = listener.getsockname()[1]
        client = openai.OpenAI(api_key="KEY", base_url=f"http://[::1]:{port}/v1", max_retries=0)
        answer = client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "hi"}], response_format=None, **GIVEN
        )
    assert answer.choices[0].message.content == "hi"
