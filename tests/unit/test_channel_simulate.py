"""A chat through a simulated channel, over a pipe."""

import io
from pathlib import Path

import pytest
from channel_world import Parrot
from PIL import Image

from herd.errors import HerdError
from herd.serve.channels.config import Options, read_config
from herd.serve.channels.simulate import simulation, talk
from herd.serve.channels.status import report, status
from herd.serve.channels.store import Store

QUICK = Options(join_s=0.0)


@pytest.mark.parametrize("channel", ["whatsapp", "messenger", "instagram"])
def test_each_line_of_a_pipe_is_answered(
    channel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    lines = f"hello\n/again\n/image {tmp_path / 'a.png'} what is it?\n/help\n/counts\n/quit\nnot read\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    parrot = Parrot()
    talk(channel, QUICK, parrot)
    out, err = capsys.readouterr()
    assert out == "You said: hello\nYou said: what is it?\n"
    assert "/edit" in err and "1 duplicate" in err
    assert [len(turn.pictures) for turn in parrot.turns] == [0, 1]


@pytest.mark.parametrize("channel", ["whatsapp", "messenger"])
def test_a_message_is_edited_and_deleted(channel: str, tmp_path: Path):
    parrot = Parrot()
    with simulation(channel, Options(join_s=0.3), parrot, tmp_path) as made:
        assert made.run("/edit x") == "there is no message yet"
        made.run("helo")
        made.run("/edit hello")
        made.settle()
        made.run("regretted")
        made.run("/delete")
        made.settle()
        assert [one.text for one in made.double.texts] == ["You said: hello"]


def test_status_lists_what_waits_for_a_person_and_releases_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in ("APP_SECRET", "ACCESS_TOKEN", "VERIFY_TOKEN"):
        monkeypatch.setenv(f"HERD_WHATSAPP_{name}", "x")
    path = tmp_path / "channels.toml"
    path.write_text('[whatsapp]\nphone_number_id = "1"\n', encoding="utf-8")
    with pytest.raises(HerdError, match="does not exist yet: run herd channels serve"):
        status(path, release="", as_json=False)
    with simulation("whatsapp", QUICK, Parrot(), tmp_path) as made:
        made.run("human")
        made.settle()
    status(path, release="", as_json=False)
    assert "a person has conversation 1 with 16505551234 on whatsapp (--release 1)" in capsys.readouterr().out
    with pytest.raises(HerdError, match="there is no conversation '7'"):
        status(path, release="7", as_json=False)
    status(path, release="1", as_json=True)
    store = Store(read_config(path).store)
    assert report(store, 0.0)["handed_over"] == []
    store.close()
