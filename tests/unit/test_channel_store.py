"""The store of the channels, where the disk says no."""

import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from herd.errors import HerdError
from herd.serve.channels import store
from herd.serve.channels.store import Store


def test_a_store_whose_folder_goes_while_it_is_opened_is_refused_at_once(tmp_path: Path, monkeypatch):
    """As on a disk that is full or read-only, no write-ahead log can be made: a server tried for ever, on a whole core,
    and answered nobody."""
    folder, connect = tmp_path / "store", sqlite3.connect
    folder.mkdir()

    def and_remove(*arguments, **options):
        db = connect(*arguments, **options)
        db.execute("PRAGMA user_version").fetchone()
        shutil.rmtree(folder)
        return db

    monkeypatch.setattr(sqlite3, "connect", and_remove)
    monkeypatch.setattr(store, "TIMEOUT_S", 2.0)
    with pytest.raises(HerdError, match="cannot be opened"):
        Store(folder / "channels.sqlite")


def test_a_store_that_another_one_holds_is_waited_for(tmp_path: Path, monkeypatch):
    path = tmp_path / "channels.sqlite"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(store, "TIMEOUT_S", 0.2)
    begin, cpu = time.monotonic(), time.thread_time()
    with pytest.raises(HerdError, match="cannot be opened"):
        Store(path)
    assert time.monotonic() - begin >= 0.2
    assert time.thread_time() - cpu < 0.2
    other.execute("ROLLBACK")
    Store(path).close()
