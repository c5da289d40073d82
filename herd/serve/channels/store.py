"""The store of all channels: one SQLite file in WAL mode, committed to disk before anything is acknowledged or sent.

Who somebody is: `aliases` lead from a phone number or an id to a person, so that a conversation goes on when one of the
two vanishes or changes. `seen` remembers the digests of event ids for longer than Meta retries, and outlives the texts.
Deleted text is overwritten (`secure_delete`) and leaves the write-ahead log at the next checkpoint.
"""

import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from herd.errors import HerdError
from herd.serve.channels.events import Who

VERSION = 1
SCHEMA = """
CREATE TABLE people (
    id INTEGER PRIMARY KEY, channel TEXT NOT NULL, phone TEXT NOT NULL, user_id TEXT NOT NULL,
    last_user_time REAL NOT NULL DEFAULT 0,      -- by Meta's clock: opens the 24 hours
    opted_out INTEGER NOT NULL DEFAULT 0,
    handed_over_until REAL NOT NULL DEFAULT 0,
    limited_until REAL NOT NULL DEFAULT 0,       -- no second notice before
    merged_into INTEGER,
    created REAL NOT NULL
);
CREATE TABLE aliases (
    channel TEXT NOT NULL, kind TEXT NOT NULL, value TEXT NOT NULL, person INTEGER NOT NULL,
    PRIMARY KEY (channel, kind, value)
) WITHOUT ROWID;
CREATE INDEX aliases_person ON aliases (person);
CREATE TABLE seen (digest BLOB PRIMARY KEY, time REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE messages (
    id INTEGER PRIMARY KEY, person INTEGER NOT NULL, mid TEXT, role TEXT NOT NULL, text TEXT NOT NULL,
    name TEXT NOT NULL DEFAULT '',               -- of what cannot be read: audio …
    time REAL NOT NULL, received REAL NOT NULL,
    edit_order REAL NOT NULL DEFAULT -1,
    state TEXT NOT NULL,                         -- new, answered, dropped; of the assistant: said, notice
    reason TEXT NOT NULL DEFAULT '',             -- of dropped
    attempts INTEGER NOT NULL DEFAULT 0,
    turn INTEGER
);
CREATE UNIQUE INDEX messages_mid ON messages (mid) WHERE mid IS NOT NULL;
CREATE INDEX messages_new ON messages (person, received) WHERE state = 'new';
CREATE INDEX messages_person ON messages (person, id);
CREATE INDEX messages_turn ON messages (turn) WHERE turn IS NOT NULL;
CREATE TABLE media (
    id INTEGER PRIMARY KEY, message INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    ref TEXT NOT NULL, mime TEXT NOT NULL, data BLOB
);
CREATE INDEX media_message ON media (message);
CREATE TABLE turns (
    id INTEGER PRIMARY KEY, person INTEGER NOT NULL, created REAL NOT NULL, state TEXT NOT NULL, -- open, closed
    next_try REAL NOT NULL
);
CREATE INDEX turns_open ON turns (person) WHERE state = 'open';
CREATE TABLE parts (
    id INTEGER PRIMARY KEY, turn INTEGER NOT NULL REFERENCES turns (id) ON DELETE CASCADE, number INTEGER NOT NULL,
    text TEXT NOT NULL, token TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,                         -- ready, sending, sent, unknown, failed, expired, cancelled
    message_id TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '',
    time REAL NOT NULL                           -- of the last change of state
);
CREATE INDEX parts_turn ON parts (turn, number);
CREATE INDEX parts_message_id ON parts (message_id) WHERE message_id != '';
CREATE TABLE counts (channel TEXT NOT NULL, name TEXT NOT NULL, num INTEGER NOT NULL, PRIMARY KEY (channel, name));
"""


TIMEOUT_S = 30.0
"""How long another process's lock is waited for."""


def use_wal(db: sqlite3.Connection) -> None:
    """Have the file keep a write-ahead log. Raises sqlite3.OperationalError where it cannot: the disk is full or
    read-only, or the folder is gone."""
    until = time.monotonic() + TIMEOUT_S
    while db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:  # else another process is about to say the same
                raise
        if time.monotonic() > until:
            raise sqlite3.OperationalError("it cannot keep a write-ahead log here")
        time.sleep(0.01)


class Store:
    """The file; safe to use from several threads and processes at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        try:
            with self.transaction() as db:
                version = db.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    for statement in SCHEMA.split(";\n"):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version = {VERSION}")
        except sqlite3.Error as error:
            raise HerdError(f"the store {path} cannot be opened ({error}): name another in channels.toml") from None
        if version not in (0, VERSION):
            raise HerdError(f"the store {path} is of version {version}, this herd's is {VERSION}: name another")

    @property
    def db(self) -> sqlite3.Connection:
        """This thread's connection."""
        if not hasattr(self._local, "db"):
            # Closed by `close`, from whichever thread that is.
            db = sqlite3.connect(self.path, timeout=TIMEOUT_S, isolation_level=None, check_same_thread=False)
            db.row_factory = sqlite3.Row
            # WAL: readers and the writer do not wait for each other. FULL: each commit is on the disk.
            use_wal(db)
            for pragma in ("synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
                db.execute(f"PRAGMA {pragma}")
            self.path.chmod(0o600)
            self._local.db = db
            with self._lock:
                self._connections.append(db)
        return self._local.db

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing; one writer at a time."""
        db = self.db
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")

    def erase_log(self) -> None:
        """Take deleted text out of the write-ahead log too, as far as no reader is in the way."""
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        with self._lock:
            for db in self._connections:
                db.close()
            self._connections.clear()
        self._local = threading.local()


def count(db: sqlite3.Connection, channel: str, name: str) -> None:
    sql = "INSERT INTO counts VALUES (?, ?, 1) ON CONFLICT (channel, name) DO UPDATE SET num = num + 1"
    db.execute(sql, (channel, name))


def _digest(channel: str, key: str) -> bytes:
    return hashlib.blake2b(f"{channel}\0{key}".encode(), digest_size=16).digest()


def is_seen(db: sqlite3.Connection, channel: str, key: str) -> bool:
    return db.execute("SELECT 1 FROM seen WHERE digest = ?", (_digest(channel, key),)).fetchone() is not None


def see(db: sqlite3.Connection, channel: str, key: str, now: float) -> bool:
    """Remember an event; whether it is the first time. Without a key always."""
    if not key:
        return True
    done = db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (_digest(channel, key), now))
    return done.rowcount == 1


def sent_text(who: Who, text: str) -> str:
    """The key of a text of ours in `seen`. The person's row may go before it."""
    return f"sent {who.user_id or who.phone} {text}"


def remember_sent(db: sqlite3.Connection, turns: str, given: Sequence[object], now: float) -> None:
    """Before the texts of answers are deleted: their echoes may still come, and are ours. `turns`: which, as SQL over
    the table of that name, with `given` in place of its question marks."""
    rows = db.execute(
        "SELECT channel, phone, user_id, parts.text, token, message_id FROM parts JOIN turns ON turns.id = parts.turn "
        f"JOIN people ON people.id = person WHERE parts.state IN ('sending', 'unknown', 'sent') AND {turns}",
        given,
    ).fetchall()
    for row in rows:
        who = Who(phone=row["phone"], user_id=row["user_id"])
        for key in [row["message_id"]] if row["message_id"] else [row["token"], sent_text(who, row["text"])]:
            see(db, row["channel"], key, now)


def _alias(db: sqlite3.Connection, channel: str, kind: str, value: str) -> int | None:
    sql = "SELECT person FROM aliases WHERE channel = ? AND kind = ? AND value = ?"
    row = db.execute(sql, (channel, kind, value)).fetchone() if value else None
    return int(row[0]) if row else None


def find_person(db: sqlite3.Connection, channel: str, who: Who) -> int | None:
    """The person that `who` is. An id decides; a phone number that belongs to somebody with another id does not."""
    by_id, by_phone = _alias(db, channel, "user_id", who.user_id), _alias(db, channel, "phone", who.phone)
    if by_id is not None or by_phone is None:
        return by_id
    sql = "SELECT 1 FROM aliases WHERE person = ? AND kind = 'user_id'"
    if who.user_id and db.execute(sql, (by_phone,)).fetchone():
        return None
    return by_phone


def person_of(db: sqlite3.Connection, channel: str, who: Who, now: float) -> int:
    """As `find_person`; a new person where there is none. Remembers new numbers and ids, and joins what proves to be
    one person."""
    person = find_person(db, channel, who)
    if person is None:
        sql = "INSERT INTO people (channel, phone, user_id, created) VALUES (?, ?, ?, ?)"
        person = db.execute(sql, (channel, who.phone, who.user_id, now)).lastrowid
        assert person is not None
    other = _alias(db, channel, "phone", who.phone)
    if (
        other not in (None, person)
        and not db.execute("SELECT 1 FROM aliases WHERE person = ? AND kind = 'user_id'", (other,)).fetchone()
    ):
        assert other is not None
        merge(db, other, person)
    for kind, value in (("phone", who.phone), ("user_id", who.user_id)):
        if value:
            db.execute("INSERT OR REPLACE INTO aliases VALUES (?, ?, ?, ?)", (channel, kind, value, person))
    return person


def merge(db: sqlite3.Connection, source: int, target: int) -> None:
    """All of `source` becomes part of `target`."""
    for table in ("aliases", "messages", "turns"):
        db.execute(f"UPDATE {table} SET person = ? WHERE person = ?", (target, source))
    # Of both: the strictest.
    db.execute(
        "UPDATE people SET opted_out = max(people.opted_out, o.opted_out), "
        "last_user_time = max(people.last_user_time, o.last_user_time), "
        "handed_over_until = max(people.handed_over_until, o.handed_over_until), "
        "limited_until = max(people.limited_until, o.limited_until) "
        "FROM (SELECT * FROM people WHERE id = ?) AS o WHERE people.id = ?",
        (source, target),
    )
    db.execute("UPDATE people SET merged_into = ?, phone = '', user_id = '' WHERE id = ?", (target, source))


def move(db: sqlite3.Connection, channel: str, who: Who, new: Who, now: float) -> None:
    """`who` is called `new` from now on. A number that was given up may become somebody else's: it is forgotten."""
    person = find_person(db, channel, who)
    if person is None:
        return
    other = find_person(db, channel, new)
    if other not in (None, person):
        assert other is not None
        merge(db, person, other)
        person = other
    if new.phone and who.phone:
        sql = "DELETE FROM aliases WHERE channel = ? AND kind = 'phone' AND value = ?"
        db.execute(sql, (channel, who.phone))
    for kind, value in (("phone", new.phone), ("user_id", new.user_id)):
        if value:
            db.execute("INSERT OR REPLACE INTO aliases VALUES (?, ?, ?, ?)", (channel, kind, value, person))
            db.execute(f"UPDATE people SET {kind} = ? WHERE id = ?", (value, person))


def current(db: sqlite3.Connection, person: int) -> sqlite3.Row | None:
    """The person's row, or that of whom they were joined with."""
    row = db.execute("SELECT * FROM people WHERE id = ?", (person,)).fetchone()
    while row is not None and row["merged_into"] is not None:
        row = db.execute("SELECT * FROM people WHERE id = ?", (row["merged_into"],)).fetchone()
    return row
