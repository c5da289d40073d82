"""API keys: which routes they open, how much they may ask, whose cache and share they are, what is written down."""

import contextlib
import hashlib
import http.client
import json
import ssl
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anthropic
import openai
import pytest
from fake_herd import FakeModel
from serve_world import Running, eventually, serving
from starlette.routing import Route

from herd.config import EngineConfig, ServeConfig
from herd.engine.pipeline import AnswerPipeline
from herd.errors import HerdError
from herd.serve import server as api
from herd.serve.audit import AuditLog
from herd.serve.keys import SCOPES, Bucket, Key, Keys, load_keys, read_keys
from herd.serve.models import one_model

SECRET, OTHER = "secret-of-alice-1234567890", "secret-of-bob-12345678901"
PUBLIC = {"/", "/health", "/ready", "/web/app.js"}


def key(secret: str, name: str = "alice", **fields: object) -> Key:
    return Key(name=name, digest=hashlib.sha256(secret.encode()).digest(), **fields)


@contextlib.contextmanager
def keyed(*keys: Key, **options: object) -> Iterator[Running]:
    model = FakeModel()
    engine = model.engine()
    tls = options.pop("tls", None)
    with api.listen("127.0.0.1", 0) as listener:
        app = api.create_app(
            one_model(AnswerPipeline(model, engine), name="fake"), keys=Keys(keys) if keys else None, **options
        )
        with serving(app, engine, listener, tls=tls):
            one = Running(model, listener.getsockname()[1])
            one.app = app
            yield one


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    with keyed(key(SECRET, scopes=frozenset(SCOPES)), key(OTHER, "bob", scopes=frozenset({"models"}))) as one:
        yield one


def ask(server: Running, secret: str, text: str = "a b", **options: object) -> object:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=secret, max_retries=0)
    return client.chat.completions.create(model="fake", messages=[{"role": "user", "content": text}], **options)


def table(server: Running) -> list[tuple[str, str]]:
    """Every method and path of the application, with something in place of what a path leaves open."""
    routes = [route for route in server.app.routes if isinstance(route, Route)]
    assert len(routes) == len(server.app.routes) >= 18
    filled = {"{model_id:path}": "fake", "{response_id}": "resp_x", "{name}": "app.js"}
    found = []
    for route in routes:
        path = route.path
        for name, value in filled.items():
            path = path.replace(name, value)
        assert "{" not in path, path
        found += [(method, path) for method in sorted(route.methods)]
    return found


def test_every_route_of_the_table_but_four_is_closed_without_a_key_and_to_a_wrong_one(locked):
    for method, path in [*table(locked), ("GET", "/nowhere"), ("POST", "/invocations"), ("POST", "/pause")]:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"x_api_key": "wrong"}, {"Authorization": SECRET}):
            status, answer = locked.raw(b"{}", path=path, method=method, **headers)
            expected = {True: 200, False: 401}[path in PUBLIC and method in ("GET", "HEAD")]
            if path in PUBLIC and method not in ("GET", "HEAD"):
                continue
            assert status == expected, (method, path, headers, answer)


def test_each_route_needs_its_scope_and_every_route_has_one(locked):
    for route in locked.app.routes:
        assert len(route.tags) == 1 and route.tags[0] in {"public", *SCOPES}, route.path
    for method, path in table(locked):
        status, answer = locked.raw(b"{}", path=path, method=method, Authorization=f"Bearer {OTHER}")
        if path in PUBLIC or path in {"/v1/models", "/v1/models/fake", "/openapi.json"}:
            assert status == 200, path
        else:
            assert status == 403, (path, answer)
    status, answer = locked.raw(b"{}", path="/v1/messages", Authorization=f"Bearer {OTHER}")
    assert json.loads(answer)["error"]["type"] == "permission_error"


def test_a_route_that_nobody_tagged_is_closed_to_every_key(locked):
    async def forgotten(request):  # as a route of another library
        raise AssertionError

    with keyed(key(SECRET, scopes=frozenset(SCOPES))) as one:
        one.app.routes.append(Route("/forgotten", forgotten))
        assert one.raw(b"", path="/forgotten", method="GET", Authorization=f"Bearer {SECRET}")[0] == 403


def test_both_clients_own_headers_carry_the_key(locked):
    assert ask(locked, SECRET).choices[0].message.content == "a b"
    with pytest.raises(openai.AuthenticationError) as caught:
        ask(locked, "wrong")
    assert caught.value.code == "invalid_api_key" and caught.value.response.headers["WWW-Authenticate"] == "Bearer"
    asked = {"model": "fake", "max_tokens": 9, "messages": [{"role": "user", "content": "a b"}]}
    url = f"http://127.0.0.1:{locked.port}"
    answer = anthropic.Anthropic(base_url=url, api_key=SECRET, max_retries=0).messages.create(**asked)
    assert answer.content[0].text == "a b"
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0).messages.create(**asked)


def test_a_wrong_key_is_refused_before_the_body_is_read(locked):
    connection = http.client.HTTPConnection("127.0.0.1", locked.port, timeout=10)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Length", str(10**9))
    connection.putheader("Authorization", "Bearer wrong")
    connection.endheaders()
    assert connection.getresponse().status == 401


def test_a_share_of_the_engine_and_its_cache_belong_to_a_key_and_not_to_an_address():
    with keyed(key(SECRET), key(OTHER, "bob")) as one:
        for secret in (SECRET, OTHER, SECRET):
            ask(one, secret, user="x")
        ask(one, SECRET, extra_body={"cache_salt": "mine"})
        engine = one.model.last_engine
        assert engine.callers == ["key alice", "key bob", "key alice", "key alice"]
        assert engine.salts[0] == engine.salts[2] and len(set(engine.salts)) == 3


def test_a_response_can_be_gone_on_from_by_its_key_alone():
    with keyed(key(SECRET), key(OTHER, "bob")) as one:
        clients = [openai.OpenAI(base_url=one.client.base_url, api_key=s, max_retries=0) for s in (SECRET, OTHER)]
        made = clients[0].responses.create(model="fake", input="a")
        assert clients[0].responses.retrieve(made.id).output_text == "a"
        with pytest.raises(openai.NotFoundError):
            clients[1].responses.retrieve(made.id)


def test_more_requests_than_a_key_may_make_are_refused_with_the_time_to_wait():
    with keyed(key(SECRET, requests=Bucket(2)), key(OTHER, "bob")) as one:
        for _ in range(2):
            ask(one, SECRET)
        with pytest.raises(openai.RateLimitError, match="requests of this minute") as caught:
            ask(one, SECRET)
        assert 1 <= int(caught.value.response.headers["Retry-After"]) <= 30
        ask(one, OTHER)  # others may go on


@pytest.mark.parametrize("stream", [False, True])
def test_more_tokens_than_a_key_may_use_are_refused(stream):
    with keyed(key(SECRET, tokens=Bucket(200))) as one:
        answer = ask(one, SECRET, "count", max_tokens=600, stream=stream)
        if stream:
            list(answer)
        with pytest.raises(openai.RateLimitError, match="tokens of this minute") as caught:
            ask(one, SECRET)
        # 600 tokens and the prompt's, less the 200 of the first minute.
        assert 120 <= int(caught.value.response.headers["Retry-After"]) <= 160


def test_a_bucket_fills_again_up_to_a_minute_s_worth():
    now = [0.0]
    bucket = Bucket(60, now=lambda: now[0])
    assert bucket.wait_s == 0
    bucket.take(90)
    assert bucket.wait_s == pytest.approx(31)
    now[0] = 31.5
    assert bucket.wait_s == 0
    now[0] = 10_000
    bucket.take(60)
    assert bucket.wait_s == pytest.approx(1)


def test_every_key_is_compared_whatever_matches(monkeypatch):
    compared = []
    real = __import__("hmac").compare_digest
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append(a) or real(a, b))
    keys = Keys([key(SECRET), key(OTHER, "bob"), key("third" * 5, "carol")])
    for secret, name in ((SECRET, "alice"), ("third" * 5, "carol"), ("none", None)):
        compared.clear()
        found = keys.find(secret.encode())
        assert (found.name if found else None) == name and len(compared) == 3


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    return path


def test_a_file_of_keys_and_the_environment_are_read(tmp_path, monkeypatch):
    monkeypatch.delenv("HERD_API_KEY", raising=False)
    assert load_keys(None) is None
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    path = written(tmp_path, f'[[key]]\nname = "a"\nsha256 = "{digest}"\nscopes = ["models"]\ntokens_per_minute = 5\n')
    [one] = read_keys(path)
    assert (one.name, one.scopes, one.requests) == ("a", {"models"}, None) and one.tokens is not None
    monkeypatch.setenv("HERD_API_KEY", OTHER)
    keys = load_keys(path)
    assert keys.find(SECRET.encode()).name == "a" and keys.find(OTHER.encode()).scopes == set(SCOPES)
    monkeypatch.setenv("HERD_API_KEY", "short")
    with pytest.raises(HerdError, match="20"):
        load_keys(path)
    monkeypatch.setenv("HERD_API_KEY", SECRET)
    with pytest.raises(HerdError, match="twice"):
        load_keys(path)


def test_the_metrics_are_for_keys_that_name_them(tmp_path):
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    [one] = read_keys(written(tmp_path, f'[[key]]\nname = "a"\nsha256 = "{digest}"\n'))
    assert one.scopes == set(SCOPES) - {"metrics"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no keys"),
        ("key = 1", "has no keys"),
        ("[[key]]\nname = 'a'", "64 hexadecimal"),
        ("[[key]]\nsha256 = 'x'", "name=None"),
        ("[[key]]\nname = 'a'\nsha256 = '" + "g" * 64 + "'", "64 hexadecimal"),
        ("[[key]]\nname = 'a'\nsecret = 'x'", "secret"),
        ("[[key]]\nname = 'a'\nsha256 = '" + "0" * 64 + "'\nscopes = ['all']", "scope"),
        ("[[key]]\nname = 'a'\nsha256 = '" + "0" * 64 + "'\ntokens_per_minute = 0", "tokens_per_minute=0"),
        ("[[key]]\nname = 'a'\nsha256 = '" + "0" * 64 + "'\nrequests_per_minute = true", "requests_per_minute=True"),
        ("[", "cannot be read"),
    ],
)
def test_a_file_that_holds_no_keys_is_refused_with_the_reason(tmp_path, text, says):
    with pytest.raises(HerdError, match=says):
        read_keys(written(tmp_path, text))


def test_two_keys_of_one_name_are_refused(tmp_path):
    rows = [f"[[key]]\nname = 'a'\nsha256 = '{str(i) * 64}'\n" for i in (1, 2)]
    with pytest.raises(HerdError, match="one name"):
        read_keys(written(tmp_path, "".join(rows)))


def test_a_server_for_other_machines_needs_keys_or_that_they_are_waived(tmp_path, monkeypatch):
    monkeypatch.delenv("HERD_API_KEY", raising=False)
    with pytest.raises(HerdError, match="--api-keys"):
        api.serve([str(tmp_path)], ServeConfig(host="0.0.0.0", port=0), EngineConfig())
    for server in (ServeConfig(host="0.0.0.0", port=0, without_keys=True), ServeConfig(port=0)):
        with pytest.raises(HerdError) as caught:
            api.serve([str(tmp_path)], server, EngineConfig())  # it goes on to the folder, which is none
        assert "--api-keys" not in str(caught.value)


def test_an_audit_log_has_who_and_what_it_cost_but_no_contents(tmp_path):
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path)
    with keyed(key(SECRET), audit=audit) as one:
        ask(one, SECRET, "PRIVATE words")
        list(ask(one, SECRET, "PRIVATE words", stream=True))
        with pytest.raises(openai.AuthenticationError):
            ask(one, "PRIVATE-key")
        one.raw(b"", path="/v1/models?api_key=PRIVATE", method="GET", Authorization=f"Bearer {SECRET}")
        assert eventually(lambda: len(path.read_text().splitlines()) == 4)
    assert "PRIVATE" not in path.read_text() and SECRET not in path.read_text()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["status"] for line in lines] == [200, 200, 401, 200]
    assert [line["key"] for line in lines] == ["alice", "alice", None, "alice"]
    assert [line["completion_tokens"] for line in lines] == [3, 3, 0, 0] and lines[0]["prompt_tokens"] > 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_contents_are_written_down_only_where_that_was_asked_for(tmp_path):
    path = tmp_path / "audit.jsonl"
    with keyed(audit=AuditLog(path, contents=True)) as one:
        ask(one, "none", "the question")
        assert eventually(lambda: path.read_text().count("\n") == 1)
    line = json.loads(path.read_text())
    assert "the question" in line["request"] and "chat.completion" in line["response"]
    with pytest.raises(HerdError, match="--audit-log"):
        ServeConfig(audit_contents=True)
    with pytest.raises(HerdError, match="--audit-log"):
        AuditLog(tmp_path)


def preflight(server: Running, origin: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    connection.request("OPTIONS", "/v1/chat/completions", headers=headers)
    return connection.getresponse()


def test_pages_of_other_origins_are_let_in_only_by_name():
    with keyed(key(SECRET)) as one:
        assert preflight(one, "https://chat.example").getheader("Access-Control-Allow-Origin") is None
    with keyed(key(SECRET), cors_origins=("https://chat.example",)) as one:
        allowed = preflight(one, "https://chat.example")
        assert allowed.status == 200
        assert allowed.getheader("Access-Control-Allow-Origin") == "https://chat.example"
        assert preflight(one, "https://evil.example").getheader("Access-Control-Allow-Origin") is None
        assert one.raw(b"{}", Origin="https://chat.example")[0] == 401  # the key is needed all the same


@pytest.mark.parametrize(
    "origin", ["*", "chat.example", "https://*.example", "https://a.example/path", "ftp://a.example"]
)
def test_an_origin_is_one_site(origin):
    with pytest.raises(HerdError, match="--cors-origins"):
        ServeConfig(cors_origins=(origin,))


def test_with_a_certificate_it_speaks_https(tmp_path):
    certificate, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(private), "-out", str(certificate)]
    subprocess.run([*command, *names], check=True, capture_output=True)
    api.check_certificate(certificate, private)
    with keyed(tls=(certificate, private)) as one:
        context = ssl.create_default_context(cafile=str(certificate))
        connection = http.client.HTTPSConnection("127.0.0.1", one.port, timeout=10, context=context)
        connection.request("GET", "/health")
        assert json.loads(connection.getresponse().read())["status"] == "ok"
    private.write_text("nonsense")
    with pytest.raises(HerdError, match="--tls"):
        api.check_certificate(certificate, private)
    with pytest.raises(HerdError, match="--tls"):
        api.check_certificate(tmp_path / "none.pem", private)
