"""A target answers, or its failure has a name: folders, servers, and what servers do wrong."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from fake_herd import FakeModel

from herd.errors import HerdError
from herd.guard.target import MAX_BODY_BYTES, AskConfig, FolderTarget, ask_all, open_target

HELLO = [{"role": "user", "content": "hello there"}]
SHORT = AskConfig(timeout_s=0.5)


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The URL of a server that does with each connection what `serve` does."""
    listener = socket.create_server(("127.0.0.1", 0))

    def loop() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as request:
                try:
                    length = 0
                    while line := request.readline().strip():
                        name, _, value = line.lower().partition(b":")
                        length = int(value) if name == b"content-length" else length
                    request.read(length)  # what is left unread would make the close a reset, which loses the reply
                    serve(connection)
                except OSError:
                    pass

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nContent-Type: application/json\r\n\r\n".encode() + body


def completion(**choice: object) -> bytes:
    return http(json.dumps({"choices": [choice]}).encode())


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(50):
        connection.sendall(b" ")
        time.sleep(0.1)


def test_a_server_answers_and_is_asked_what_was_set(server):
    target = open_target(f"http://127.0.0.1:{server.port}/v1/", AskConfig(temperature=0.5, max_tokens=7))
    answer = target.ask(HELLO, seed=3)
    assert (answer.text, answer.failure, answer.finish_reason) == ("hello there", None, "stop")
    _, params = server.model.last_engine.seen[-1]
    assert (params.temperature, params.max_tokens, params.seed) == (0.5, 7, 3)
    target.close()


def test_a_folder_answers_in_this_process(tiny_folder):
    target = open_target(tiny_folder, AskConfig(max_tokens=5, temperature=1.0))
    try:
        first, again, other = (target.ask(HELLO, seed=seed) for seed in (1, 1, 2))
        assert first.failure in (None, "empty") and first.text == again.text
        assert [one.text for one in ask_all(target, [HELLO, HELLO], seed=1, at_once=2)] == [first.text] * 2
        long = target.ask([{"role": "user", "content": "word " * 50_000}])
        assert (long.failure, "context" in long.detail) == ("error status", True)
        assert target.ask([{"role": "user"}]).failure == "error status"
    finally:
        target.close()


def test_a_folder_that_generates_too_long_hangs_and_one_that_fails_says_so():
    target = FolderTarget(FakeModel(delay_s=0.01), AskConfig(timeout_s=0.2, max_tokens=1000), name="fake")
    answer = target.ask([{"role": "user", "content": "count"}])
    assert answer.failure == "hung" and answer.text.startswith("1 2 3")
    answer = target.ask([{"role": "user", "content": "fail"}])
    assert answer.failure == "error status" and "made to fail" in answer.detail


@pytest.mark.parametrize(
    ("reply", "failure", "detail"),
    [
        (http(b"<html>"), "garbage", "no JSON: <html>"),
        (http(b'"text"'), "garbage", "no chat completion"),
        (http(b"[" * 100_000), "garbage", "no JSON"),
        (http(b'{"choices": []}'), "garbage", "no chat completion"),
        (completion(message={"content": 5}), "garbage", "no chat completion"),
        (b"SSH-2.0-OpenSSH\r\n", "garbage", "no HTTP"),
        (http(b" " * (MAX_BODY_BYTES + 5)), "garbage", "more than"),
        (http(b'{"error": "busy"}', "429 Too Many Requests"), "error status", 'HTTP 429 {"error": "busy"}'),
        (b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n", "error status", "HTTP 302"),
        (http(b"{}")[:-1], "dropped connection", "bytes of the answer are missing"),
        (b"", "dropped connection", "closed connection"),
        (completion(message={"content": " \n"}), "empty", "without text"),
        (completion(message={"content": None}), "empty", "without text"),
        (completion(message={"content": "Su"}, finish_reason="content_filter"), "blocked", "content_filter"),
    ],
)  # fmt: skip
def test_what_a_server_does_wrong_has_a_name(reply, failure, detail):
    with raw_server(lambda connection: connection.sendall(reply)) as url:
        answer = open_target(url, AskConfig(timeout_s=10), model="m").ask(HELLO)
    assert answer.failure == failure
    assert detail in answer.detail and "\n" not in answer.detail and len(answer.detail) <= 200


def test_a_refusal_of_its_own_field_is_a_text():
    reply = completion(message={"content": None, "refusal": "No."}, finish_reason="stop")
    with raw_server(lambda connection: connection.sendall(reply)) as url:
        assert open_target(url, model="m").ask(HELLO).text == "No."


@pytest.mark.parametrize("serve", [lambda connection: time.sleep(3), drip])
def test_a_server_that_hangs_or_drips_is_left_in_time(serve):
    with raw_server(serve) as url:
        begin = time.monotonic()
        answer = open_target(url, SHORT, model="m").ask(HELLO)
        assert answer.failure == "hung" and time.monotonic() - begin < 2


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as held:
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
    assert open_target(url).ask(HELLO).failure == "refused connection"


def test_a_server_without_a_list_of_models_needs_a_name():
    with raw_server(lambda connection: connection.sendall(http(b"{}"))) as url:
        answer = open_target(url).ask(HELLO)
        assert (answer.failure, "name one" in answer.detail) == ("garbage", True)


@pytest.mark.parametrize(
    "place", ["http://", "ftp://x/", "http://x:port", "http://a:b@c/", "http://[::1", "http://c?a=b"]
)
def test_addresses_that_name_no_server_are_refused(place):
    with pytest.raises(HerdError, match="is no address of a server"):
        open_target(place)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(HerdError):
        open_target(tmp_path / "nothing")


def test_a_proxy_of_the_environment_is_not_used(server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://192.0.2.1:1")
    assert open_target(f"http://127.0.0.1:{server.port}").ask(HELLO).failure is None
