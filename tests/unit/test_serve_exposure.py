"""`herd serve --check`: what is exposed and what not, and a code that a start can depend on."""

import re
from pathlib import Path

import pytest

from herd.cli import main
from herd.config import ServeConfig
from herd.serve.channels.config import ChannelsConfig, Options
from herd.serve.channels.double import local_accounts
from herd.serve.exposure import Finding, find_exposure
from herd.serve.keys import load_keys

KEY = f'[[key]]\nname = "ann"\nsha256 = "{"ab" * 32}"\nrequests_per_minute = 5\n'


@pytest.fixture(autouse=True)
def without_variable(monkeypatch):
    monkeypatch.delenv("HERD_API_KEY", raising=False)


def found(server: ServeConfig, *, address: str = "127.0.0.1", models=(), **options) -> list[Finding]:
    given = {"guard": None, "prompt_guard": None, "channels": None, "keys": load_keys(server.api_keys)}
    return list(find_exposure(models, server, address=address, max_num_seqs=32, **(given | options)))


def levels(findings: list[Finding], what: str) -> set[str]:
    return {one.level for one in findings if one.what == what}


def test_a_server_of_this_machine_alone_is_not_dangerous(tiny_folder: Path, capsys):
    assert main(["serve", str(tiny_folder), "--check"]) == 0
    printed = capsys.readouterr().out
    assert "ok      host      127.0.0.1: this machine alone" in printed
    assert re.search(r"without a key: .*GET /health, GET /ready", printed)
    assert "scope metrics: GET /metrics" in printed and "POST /v1/chat/completions" in printed
    assert "closed to all" not in printed and "(huggingface)" in printed
    assert printed.endswith("0 dangerous, 0 to look at\n")


def test_what_is_dangerous_fails_with_its_name(tiny_folder: Path, tmp_path: Path, capsys):
    for options in ([], ["--without-keys"]):
        assert main(["serve", str(tiny_folder), "--check", "--host", "0.0.0.0", *options]) == 1
        out, err = capsys.readouterr()
        assert "danger  host" in out and "dangerous: host" in err
    assert main(["serve", str(tmp_path), "--check"]) == 1
    assert "danger  models" in capsys.readouterr().out
    assert main(["serve", str(tiny_folder), "--check", "--host", "no.such.host.invalid"]) == 1
    assert "--host" in capsys.readouterr().err


def test_an_open_server_is_looked_at_from_all_sides(tmp_path: Path):
    keys = tmp_path / "keys.toml"
    keys.write_text(KEY)
    keys.chmod(0o600)
    is_open = {"address": "10.0.0.1"}
    plain = found(ServeConfig(host="0.0.0.0", api_keys=keys), **is_open)
    assert levels(plain, "host") == {"ok"} and levels(plain, "keys") == {"ok"}
    assert levels(plain, "tls") == levels(plain, "audit") == levels(plain, "guards") == {"look"}
    keys.chmod(0o666)
    assert "danger" in levels(found(ServeConfig(host="0.0.0.0", api_keys=keys), **is_open), "keys")
    keys.write_text(KEY.replace("requests_per_minute = 5", ""))
    keys.chmod(0o600)
    assert levels(found(ServeConfig(host="0.0.0.0", api_keys=keys), **is_open), "keys") == {"look"}
    secret = tmp_path / "key.pem"
    secret.write_text("")
    for mode, level in ((0o640, {"ok", "danger"}), (0o600, {"ok"})):
        secret.chmod(mode)
        assert levels(found(ServeConfig(tls=(secret, secret)), **is_open), "tls") == level
    log = tmp_path / "audit.jsonl"
    assert levels(found(ServeConfig(audit_log=log), **is_open), "audit") == {"ok"}
    assert levels(found(ServeConfig(audit_log=log, audit_contents=True), **is_open), "audit") == {"look"}
    both = found(ServeConfig(), guard=tmp_path, prompt_guard=tmp_path, **is_open)
    assert levels(both, "guards") == {"ok"}
    assert levels(found(ServeConfig(cors_origins=("http://a.example",))), "cors") == {"look"}
    assert levels(found(ServeConfig()), "pictures") == {"ok"}
    assert levels(found(ServeConfig(picture_hosts=("img.example.org",))), "pictures") == {"look"}


def test_channels_upstreams_and_memory_are_reported(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HERD_API_KEY", "x" * 30)
    accounts = local_accounts("http://127.0.0.1:1/v25.0")
    channels = ChannelsConfig(options=Options(), accounts=accounts, store=tmp_path / "channels.sqlite")
    findings = found(ServeConfig(), channels=channels)
    assert any("whatsapp" in one.detail for one in findings if one.what == "channels")
    assert levels(findings, "guards") == levels(findings, "keys") - {"ok"} == {"look"}  # it answers people
    for url, level in (("http://10.0.0.2:8001/v1", "look"), ("http://localhost:1", "ok"), ("https://x.example", "ok")):
        assert levels(found(ServeConfig(upstream=url)), "models") == {level}
    two = [f"a={tmp_path}", f"b={tmp_path}"]
    assert "look" in levels(found(ServeConfig(), models=two), "models")
    assert "look" not in levels(found(ServeConfig(memory=10), models=two), "models")
