"""Pictures at addresses: from the hosts that the operator has named, at public addresses, and from nowhere else."""

import asyncio
import base64
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from fake_herd import FakeModel
from serve_world import Running, picture, serving

from herd.config import ServeConfig
from herd.engine.pipeline import AnswerPipeline
from herd.errors import HerdError
from herd.serve import pictures
from herd.serve import server as api
from herd.serve.models import one_model
from herd.serve.pictures import Pictures
from herd.serve.refusal import ApiError
from herd.serve.schema import ChatRequest

PUBLIC, HOST = "157.240.1.35", "img.example.org"
PNG = base64.b64decode(picture(5, 4)["image_url"]["url"].partition(",")[2])


class Web:
    """What answers in place of all hosts, and what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[httpx2.Request] = []
        self.answer = httpx2.Response(200, headers={"Content-Type": "image/png"}, content=PNG)

        def respond(request: httpx2.Request) -> httpx2.Response:
            self.asked.append(request)
            return self.answer

        monkeypatch.setattr(
            pictures, "open_client", lambda: httpx2.AsyncClient(transport=httpx2.MockTransport(respond))
        )
        self.addresses = [PUBLIC]

        async def getaddrinfo(_: object, host: str, port: int, **kinds: int) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in self.addresses]

        monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    return Web(monkeypatch)


@contextlib.contextmanager
def fetching(*hosts: str) -> Iterator[Running]:
    model = FakeModel()
    engine = model.engine()
    with api.listen("127.0.0.1", 0) as listener:
        app = api.create_app(one_model(AnswerPipeline(model, engine), name="fake"), picture_hosts=hosts)
        with serving(app, engine, listener):
            yield Running(model, listener.getsockname()[1])


def part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


def fetched(url: str, *hosts: str, role: str = "user", num: int = 1) -> ChatRequest:
    content = [{"type": "text", "text": "look"}, *[part(url)] * num]
    chat = ChatRequest.model_validate({"model": "fake", "messages": [{"role": role, "content": content}]})
    return asyncio.run(Pictures(hosts).fetched(chat))


def test_every_api_that_takes_pictures_takes_their_addresses(web: Web):
    url = f"https://{HOST}/a.png?x=1"
    with fetching(HOST) as one:
        as_data = one.ask([picture(5, 4), {"type": "text", "text": "and"}]).choices[0].message.content
        content = [part(url), {"type": "text", "text": "and"}]
        assert one.ask(content).choices[0].message.content == as_data
        items = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "and"}]
        response = one.client.responses.create(model="fake", input=[{"role": "user", "content": items}])
        assert response.output_text == as_data
        client = anthropic.Anthropic(base_url=f"http://127.0.0.1:{one.port}", api_key="none", max_retries=0)
        blocks = [{"type": "image", "source": {"type": "url", "url": url}}, {"type": "text", "text": "and"}]
        message = client.messages.create(
            model="fake", max_tokens=99, messages=[{"role": "user", "content": blocks}]
        )  # fmt: skip
        assert message.content[0].text == as_data
    assert [str(asked.url) for asked in web.asked] == [f"https://{PUBLIC}/a.png?x=1"] * 3
    assert {asked.headers["Host"] for asked in web.asked} == {HOST}
    assert {asked.extensions["sni_hostname"] for asked in web.asked} == {HOST}


def test_without_named_hosts_nothing_is_fetched(web: Web):
    with fetching() as one, pytest.raises(openai.BadRequestError, match="would have to be fetched"):
        one.ask([part(f"https://{HOST}/a.png")])
    assert not web.asked


@pytest.mark.parametrize(
    "url",
    [
        f"http://{HOST}/a.png",
        f"https://{HOST}:8443/a.png",
        f"https://user:word@{HOST}/a.png",
        f"https://{HOST}.evil.example/a.png",
        f"https://not{HOST}/a.png",
        f"https://evil.example/{HOST}",
        "https://notexample.net/a.png",
        "https://example.net/a.png",
        "https://169.254.169.254/latest",
        "https://[::1]/a.png",
        f" https://evil.example#@{HOST}/",
        f"https://evil.example\\@{HOST}/",
    ],
)
def test_no_other_host_scheme_or_port_is_asked(web: Web, url: str):
    with pytest.raises(ApiError) as error:
        fetched(url, HOST, ".example.net")
    assert error.value.param == "messages[0].content[1].image_url" and not web.asked


def test_hosts_below_a_named_domain_are_asked(web: Web):
    made = fetched("https://a.b.example.net/a.png", ".example.net").messages[0].content[1]
    assert made.image_url.url == "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert made.image_url.detail == "low"


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.5", "169.254.169.254", "::1", "::ffff:127.0.0.1"])
def test_a_named_host_at_an_address_that_is_not_public_is_not_asked(web: Web, address: str):
    web.addresses = [PUBLIC, address]
    with pytest.raises(ApiError, match="no public address"):
        fetched(f"https://{HOST}/a.png", HOST)
    assert not web.asked


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (httpx2.Response(302, headers={"Location": "http://169.254.169.254/"}), "no picture came back"),
        (httpx2.Response(200, headers={"Content-Type": "text/html"}, content=b"<a>"), "text/html"),
        (httpx2.Response(404, headers={"Content-Type": "image/png"}), "404"),
    ],
)
def test_redirects_pages_and_failures_are_named(web: Web, answer: httpx2.Response, says: str):
    web.answer = answer
    with pytest.raises(ApiError, match=says):
        fetched(f"https://{HOST}/a.png", HOST)
    assert len(web.asked) == 1


def test_one_picture_and_all_of_a_request_have_a_most_size(web: Web, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pictures, "MAX_REQUEST_BYTES", 2 * len(PNG))
    assert len(fetched(f"https://{HOST}/a.png", HOST, num=2).messages[0].content) == 3
    with pytest.raises(ApiError, match="has more than") as error:
        fetched(f"https://{HOST}/a.png", HOST, num=3)
    assert error.value.param == "messages[0].content[3].image_url"
    monkeypatch.setattr(pictures, "MAX_MEDIA_BYTES", len(PNG) - 1)
    with pytest.raises(ApiError, match="has more than"):
        fetched(f"https://{HOST}/a.png", HOST)


def test_the_client_follows_no_redirect_and_reads_no_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    client = pictures.open_client()
    assert not client.follow_redirects and not client.trust_env and not client._mounts
    asyncio.run(client.aclose())


def test_a_slow_host_is_given_up(web: Web, monkeypatch: pytest.MonkeyPatch):
    async def hang(host: str) -> str:
        await asyncio.sleep(60)
        return PUBLIC

    monkeypatch.setattr(pictures, "FETCH_S", 0.1)
    monkeypatch.setattr(pictures, "public_address", hang)
    with pytest.raises(ApiError, match="TimeoutError"):
        fetched(f"https://{HOST}/a.png", HOST)


def test_nothing_is_fetched_for_a_role_that_has_no_pictures(web: Web):
    with pytest.raises(ApiError, match="cannot hold a picture"):
        fetched(f"https://{HOST}/a.png", HOST, role="system")
    assert not web.asked


@pytest.mark.parametrize(
    "host", ["https://a.example", "a.example/b", "*", "*.example", "10.0.0.1", "A.example", "org", ""]
)
def test_what_is_no_host_s_name_is_refused(host: str):
    with pytest.raises(HerdError, match="--picture-hosts"):
        ServeConfig(picture_hosts=(host,))
