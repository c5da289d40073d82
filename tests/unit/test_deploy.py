"""What is in deploy/: its commands are ones that the server takes and that `--check` lets pass."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from herd.cli import main

DEPLOY = Path(__file__).parents[2] / "deploy"
KEYS = f'[[key]]\nname = "ann"\nsha256 = "{"ab" * 32}"\n'


def compose_words() -> list[str]:
    return [str(word) for word in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["herd"]["command"]]


def unit_words() -> list[str]:
    unit = (DEPLOY / "herd.service").read_text()
    [options] = re.findall(r'Environment="HERD_OPTIONS=(.*)"', unit)
    [started] = re.findall(r"ExecStart=/opt/herd/bin/herd (.*)", unit)
    [checked] = re.findall(r"ExecStartPre=/opt/herd/bin/herd (.*)", unit)
    assert checked == f"{started} --check"
    return shlex.split(started.replace("$HERD_OPTIONS", options))


@pytest.mark.parametrize("words", [compose_words, unit_words])
def test_the_command_of_a_deployment_passes_its_own_check(words, tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HERD_API_KEY", raising=False)
    keys = tmp_path / "keys.toml"
    keys.write_text(KEYS)
    keys.chmod(0o600)
    here = {"/run/secrets/keys": str(keys), "/etc/herd/keys.toml": str(keys)}
    command = [here.get(word, str(tiny_folder) if "models/" in word else word) for word in words()]
    assert command[0] == "serve" and str(keys) in command and str(tiny_folder) in command
    assert main([*command, "--check"]) == 0, capsys.readouterr().out


def test_containers_have_no_rights_and_a_healthcheck():
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["herd"]
    assert service["cap_drop"] == ["ALL"] and service["read_only"] and "/ready" in service["healthcheck"]["test"][-1]
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    assert "USER 10001" in lines and any(line.startswith("HEALTHCHECK") for line in lines)
    for copied in (line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line):
        assert all((DEPLOY.parent / name).exists() for name in copied)


def test_systemd_takes_the_unit(tmp_path):
    if not (program := shutil.which("systemd-analyze")):
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / "herd.service"  # the program is not installed here
    unit.write_text((DEPLOY / "herd.service").read_text().replace("/opt/herd/bin/herd", "/bin/true"))
    done = subprocess.run([program, "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
