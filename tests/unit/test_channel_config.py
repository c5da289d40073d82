"""channels.toml: each mistake is one line that names the field and what to set."""

from pathlib import Path

import pytest

from herd.errors import HerdError
from herd.serve.channels.config import read_config

ACCOUNTS = '[whatsapp]\nphone_number_id = "106540352242922"\n'


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch):
    for channel in ("WHATSAPP", "MESSENGER", "INSTAGRAM"):
        for name in ("APP_SECRET", "ACCESS_TOKEN", "VERIFY_TOKEN"):
            monkeypatch.setenv(f"HERD_{channel}_{name}", f"{channel} {name}")


def written(folder: Path, text: str) -> Path:
    path = folder / "channels.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_three_channels_are_read_with_their_secrets_and_defaults(tmp_path: Path):
    words = 'join_s = 1.0\n[words]\nopt_out = ["basta"]\n'
    text = f'{words}{ACCOUNTS}[messenger]\npage_id = "1"\n[instagram]\naccount_id = "2"\n'
    config = read_config(written(tmp_path, text))
    assert list(config.accounts) == ["whatsapp", "messenger", "instagram"]
    assert config.accounts["whatsapp"].app_secret == "WHATSAPP APP_SECRET"
    assert config.accounts["instagram"].graph == "https://graph.instagram.com/v25.0"
    assert (config.options.join_s, config.options.words.opt_out) == (1.0, ("basta",))
    assert config.store == tmp_path.resolve() / "channels.sqlite"
    assert "SECRET" not in repr(config) and "TOKEN" not in repr(config)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"no account: add \[whatsapp\]"),
        ("[whatsapp", "not valid TOML"),
        ("[whatsap]\n", "no account"),
        (f"joins_s = 1\n{ACCOUNTS}", "unknown option 'joins_s', did you mean 'join_s'"),
        (f"[words]\nopt_aut = []\n{ACCOUNTS}", r"unknown field of \[words\] 'opt_aut', did you mean 'opt_out'"),
        (f"max_tokens = 0\n{ACCOUNTS}", "max_tokens = 0 must be from 1"),
        (f'max_tokens = "many"\n{ACCOUNTS}', "max_tokens"),
        (f'store = "none/here.sqlite"\n{ACCOUNTS}', "the folder .* does not exist"),
        ("[whatsapp]\n", "phone_number_id = '' must be the number"),
        ("[whatsapp]\nphone_number_id = 5\n", "must be a text, in quotation marks"),
        (f'{ACCOUNTS}app_secret = "x"\n', "app_secret does not belong into a file: .* app_secret_variable"),
        (f'{ACCOUNTS}app_secret_variable = "HERD_NONE"\n', "HERD_NONE is not set: put the app secret into it"),
        (f'{ACCOUNTS}graf = "x"\n', r"unknown field of \[whatsapp\] 'graf', did you mean 'graph'"),
        (f'{ACCOUNTS}graph = "http://graph.facebook.com/v25.0"\n', "unencrypted: use https"),
        (f'{ACCOUNTS}graph = "graph.facebook.com"\n', "must be an address like"),
        (f'{ACCOUNTS}media_hosts = "x"\n', "must be a list of host names"),
        ("whatsapp = 5\n", "must be a table"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_set(tmp_path: Path, text: str, said: str):
    with pytest.raises(HerdError, match=said) as caught:
        read_config(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(HerdError, match="does not exist"):
        read_config(tmp_path / "none.toml")
