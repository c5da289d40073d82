"""Where pictures are fetched from: hosts that were named, at public addresses, which are resolved once."""

import asyncio
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import pytest

from herd.errors import HerdError
from herd.serve import pictures
from herd.serve.channels import graph as graphs
from herd.serve.channels.config import Account
from herd.serve.channels.double import local_accounts
from herd.serve.channels.events import Media
from herd.serve.channels.graph import Graph

PUBLIC = "157.240.1.35"
HOST = "scontent.fbcdn.net"


def account() -> Account:
    return local_accounts("https://graph.facebook.com/v25.0")["messenger"]


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Every name means these addresses; gives the names that are asked for."""
    asked: list[str] = []

    async def getaddrinfo(self: object, host: str, port: int, **kinds: int) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)
    return asked


def fetch(url: str, answer: httpx2.Response, seen: list[httpx2.Request]) -> bytes:
    async def run() -> bytes:
        one = Graph(account())
        one._client = httpx2.AsyncClient(transport=httpx2.MockTransport(lambda asked: seen.append(asked) or answer))
        return await one.fetch(Media(ref=url))

    return asyncio.run(run())


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.5", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1%eth0", "fd00::1",
     "::ffff:127.0.0.1"],
)  # fmt: skip
def test_a_named_host_at_an_address_that_is_not_public_is_not_reached(monkeypatch: pytest.MonkeyPatch, address: str):
    for addresses in ((address,), (PUBLIC, address)):
        resolve_to(monkeypatch, *addresses)
        seen: list[httpx2.Request] = []
        with pytest.raises(HerdError, match="no public address"):
            fetch(f"https://{HOST}/a.png", httpx2.Response(200), seen)
        assert not seen


def test_the_address_that_was_looked_at_is_the_one_that_is_asked(monkeypatch: pytest.MonkeyPatch):
    names, seen = resolve_to(monkeypatch, PUBLIC), list[httpx2.Request]()
    picture = httpx2.Response(200, headers={"Content-Type": "image/png"}, content=b"a picture")
    assert fetch(f"https://{HOST}/a.png?x=1", picture, seen) == b"a picture"
    [asked] = seen
    assert (str(asked.url), asked.headers["Host"]) == (f"https://{PUBLIC}/a.png?x=1", HOST)
    assert asked.extensions["sni_hostname"] == HOST and names == [HOST]


def test_a_redirect_is_not_followed(monkeypatch: pytest.MonkeyPatch):
    resolve_to(monkeypatch, PUBLIC)
    moved = httpx2.Response(302, headers={"Location": "http://169.254.169.254/"})
    seen: list[httpx2.Request] = []
    with pytest.raises(HerdError, match="no picture came back"):
        fetch(f"https://{HOST}/a.png", moved, seen)
    assert len(seen) == 1


@pytest.mark.parametrize("name", [HOST, "another.fbcdn.net"])
def test_the_certificate_must_be_the_host_s_though_its_address_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
):
    """Over real TLS: a server at the address with the certificate of `name`."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run([*command, "-addext", f"subjectAltName=DNS:{name}", *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    trusting = ssl.create_default_context(cafile=tmp_path / "cert.pem")
    monkeypatch.setattr(graphs, "verification", lambda: trusting)
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        writer.close()

    async def run() -> bytes:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]

        async def here(host: str) -> str:
            return "127.0.0.1"

        monkeypatch.setattr(pictures, "public_address", here)
        one = Graph(account())
        monkeypatch.setattr(one, "_may_fetch", lambda url: True)  # at a port that is free here
        async with server:
            try:
                return await one.fetch(Media(ref=f"https://{HOST}:{port}/a.png"))
            finally:
                await one.close()

    if name == HOST:
        assert asyncio.run(run()) == b"ok" and f"host: {HOST}".encode() in heads[0].lower()
    else:
        with pytest.raises(HerdError, match="ConnectError"):
            asyncio.run(run())
        assert not heads
