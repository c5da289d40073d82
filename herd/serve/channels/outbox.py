"""From the store to the world: who is to be answered, with what, and what became of each part of an answer.

A part is `sending` on the disk before its request leaves. Found in that state after a crash it is `unknown`: it may
have been sent, and the Graph API has no idempotency key, so it is never sent again. A receipt makes it `sent`.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from herd.serve.channels.events import Who
from herd.serve.channels.store import Store, count, current, remember_sent

WINDOW_S = 24 * 3600
WINDOW_MARGIN_S = 60
SEEN_DAYS = 14
"""Meta retries for up to 7 days."""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A message that waits for its answer."""

    id: int
    mid: str
    text: str
    name: str
    time: float
    edit_order: float
    attempts: int
    media: tuple[tuple[int, str, str, bytes | None], ...]
    """Of each picture: row, reference, type, and bytes where it was fetched."""


@dataclass(frozen=True, kw_only=True)
class Person:
    id: int
    channel: str
    who: Who
    last_user_time: float
    opted_out: bool
    handed_over_until: float
    limited_until: float


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of an answer whose turn it is."""

    id: int
    turn: int
    number: int
    text: str
    token: str
    state: str
    attempts: int
    time: float


def due(store: Store, *, join_s: float, max_join_s: float) -> list[tuple[int, str, float]]:
    """Who waits for something, on which channel, and from when on it can be done; earliest first."""
    # An open answer comes before what waits, however long it is held up.
    sql = (
        "WITH open AS (SELECT person, max(next_try) AS at FROM turns WHERE state = 'open' GROUP BY person), "
        "waiting AS (SELECT person, min(max(received) + ?, min(received) + ?) AS at FROM messages WHERE state = 'new' "
        "GROUP BY person) "
        "SELECT person, channel, at FROM (SELECT * FROM open UNION ALL SELECT * FROM waiting WHERE person NOT IN "
        "(SELECT person FROM open)) JOIN people ON people.id = person ORDER BY at"
    )
    return [(row["person"], row["channel"], row["at"]) for row in store.db.execute(sql, (join_s, max_join_s))]


def person(store: Store, person_id: int) -> Person | None:
    row = current(store.db, person_id)
    if row is None:
        return None
    # By the number that the last message had, else by the id; Meta takes either, never both.
    who = Who(phone=row["phone"]) if row["phone"] else Who(user_id=row["user_id"])
    return Person(
        id=row["id"], channel=row["channel"], who=who, last_user_time=row["last_user_time"],
        opted_out=bool(row["opted_out"]), handed_over_until=row["handed_over_until"],
        limited_until=row["limited_until"],
    )  # fmt: skip


def pending(store: Store, person_id: int) -> list[Pending]:
    """The messages that wait, in the order in which they were written."""
    db = store.db
    rows = db.execute("SELECT * FROM messages WHERE person = ? AND state = 'new' ORDER BY time, id", (person_id,))
    return [
        Pending(
            id=row["id"], mid=row["mid"].partition(" ")[2], text=row["text"], name=row["name"], time=row["time"],
            edit_order=row["edit_order"], attempts=row["attempts"],
            media=tuple(
                (one["id"], one["ref"], one["mime"], one["data"])
                for one in db.execute("SELECT * FROM media WHERE message = ? ORDER BY id", (row["id"],))
            ),
        )
        for row in rows.fetchall()
    ]  # fmt: skip


def keep_picture(store: Store, media_id: int, data: bytes) -> None:
    with store.transaction() as db:
        db.execute("UPDATE media SET data = ? WHERE id = ?", (data, media_id))


def num_answered(store: Store, person_id: int, since: float) -> int:
    """How many messages of a person were answered, or are no longer stored though they were."""
    sql = (
        "SELECT count(*) FROM messages WHERE person = ? AND role = 'user' AND received > ? AND turn IS NOT NULL"
        " AND state IN ('answered', 'dropped')"
    )
    return int(store.db.execute(sql, (person_id, since)).fetchone()[0])


def history(store: Store, person_id: int, most: int) -> list[tuple[str, str, list[bytes]]]:
    """Role, text and pictures of the last messages of a conversation, oldest first."""
    db = store.db
    sql = (
        "SELECT messages.*, coalesce(turns.created, received) AS at FROM messages "
        "LEFT JOIN turns ON turns.id = messages.turn WHERE messages.person = ? "
        "AND (messages.state IN ('answered', 'said') OR reason = 'handed over') "
        "ORDER BY at DESC, role = 'user', time DESC, messages.id DESC LIMIT ?"
    )
    rows = db.execute(sql, (person_id, most)).fetchall()[::-1]
    pictures = "SELECT data FROM media WHERE message = ? AND data IS NOT NULL ORDER BY id"
    return [(row["role"], row["text"], [one[0] for one in db.execute(pictures, (row["id"],))]) for row in rows]


def answer(
    store: Store,
    person_id: int,
    messages: Sequence[Pending],
    text: str,
    parts: Sequence[str],
    now: float,
    *,
    reason: str = "",
    also: str = "",
) -> bool:
    """Write down an answer, to be sent in `parts`; False, and nothing is written, where a message has been edited or
    deleted since it was read, or answered. With a `reason` the messages are no part of the conversation, nor is the
    answer, which may be empty. `also`: what becomes of the person, as SQL."""
    with store.transaction() as db:
        row = current(db, person_id)
        assert row is not None
        person_id, channel = row["id"], row["channel"]
        for one in messages:
            now_is = db.execute("SELECT state, edit_order FROM messages WHERE id = ?", (one.id,)).fetchone()
            if now_is is None or now_is["state"] != "new" or now_is["edit_order"] != one.edit_order:
                return False
        turn = None
        if parts:
            sql = "INSERT INTO turns (person, created, state, next_try) VALUES (?, ?, 'open', 0)"
            turn = db.execute(sql, (person_id, now)).lastrowid
            for number, part in enumerate(parts):
                db.execute(
                    "INSERT INTO parts (turn, number, text, token, state, time) VALUES (?, ?, ?, ?, 'ready', ?)",
                    (turn, number, part, uuid.uuid4().hex, now),
                )
            db.execute(
                "INSERT INTO messages (person, role, text, time, received, state, turn) "
                "VALUES (?, 'assistant', ?, ?, ?, ?, ?)",
                (person_id, text, now, now, "notice" if reason else "said", turn),
            )
        for one in messages:
            db.execute(
                "UPDATE messages SET state = ?, reason = ?, turn = ? WHERE id = ?",
                ("dropped" if reason else "answered", reason, turn, one.id),
            )
        if also:
            db.execute(f"UPDATE people SET {also} WHERE id = ?", (person_id,))
        count(db, channel, f"not answered: {reason}" if reason else "answered")
    return True


def count_attempt(store: Store, messages: Sequence[Pending]) -> None:
    """An answer failed: its messages are tried again, and joined later by as much."""
    with store.transaction() as db:
        for one in messages:
            db.execute("UPDATE messages SET attempts = attempts + 1 WHERE id = ?", (one.id,))


def next_part(store: Store, person_id: int) -> Part | None:
    """The part of the oldest open answer that is to be sent or settled; an answer without one is closed."""
    with store.transaction() as db:
        while (turn := db.execute(
            "SELECT id FROM turns WHERE person = ? AND state = 'open' ORDER BY id LIMIT 1", (person_id,)
        ).fetchone()) is not None:  # fmt: skip
            row = db.execute(
                "SELECT * FROM parts WHERE turn = ? AND state IN ('ready', 'sending', 'unknown') "
                "ORDER BY number LIMIT 1",
                (turn["id"],),
            ).fetchone()
            if row is not None:
                names = ("id", "turn", "number", "text", "token", "state", "attempts", "time")
                return Part(**{name: row[name] for name in names})
            db.execute("UPDATE turns SET state = 'closed' WHERE id = ?", (turn["id"],))
    return None


def begin_sending(store: Store, part: Part, now: float) -> bool:
    """Whether the part may be sent now: it is still wanted, and on the disk it says that it is being sent."""
    with store.transaction() as db:
        sql = "UPDATE parts SET state = 'sending', attempts = attempts + 1, time = ? WHERE id = ? AND state = 'ready'"
        return db.execute(sql, (now, part.id)).rowcount == 1


def set_state(
    store: Store,
    part: Part,
    state: str,
    now: float,
    *,
    message_id: str = "",
    error: str = "",
    next_try: float = 0.0,
    ends: bool = False,
) -> None:
    """What became of a part that was being sent; `ends`: the parts after it are not sent. A receipt that came first
    stays."""
    with store.transaction() as db:
        db.execute(
            "UPDATE parts SET state = ?, message_id = CASE WHEN ? != '' THEN ? ELSE message_id END, error = ?, "
            "time = ? "
            "WHERE id = ? AND (state IN ('sending', 'ready', 'unknown') OR (state = 'sent' AND ? = 'sent'))",
            (state, message_id, message_id, error, now, part.id, state),
        )
        db.execute("UPDATE turns SET next_try = ? WHERE id = ?", (next_try, part.turn))
        if ends:
            db.execute(
                "UPDATE parts SET state = 'cancelled', error = ?, time = ? WHERE turn = ? AND state = 'ready'",
                (f"the part before it: {state}", now, part.turn),
            )
        db.execute(
            "UPDATE turns SET state = 'closed' WHERE id = ? AND (? OR NOT EXISTS (SELECT 1 FROM parts "
            "WHERE turn = turns.id AND state IN ('ready', 'sending', 'unknown')))",
            (part.turn, ends),
        )
        row = db.execute("SELECT channel FROM turns JOIN people ON people.id = person WHERE turns.id = ?", (part.turn,))
        if (found := row.fetchone()) is not None:
            count(db, found["channel"], f"part {state}" + (f": {error}" if error and state != "sent" else ""))


def cancel(store: Store, person_id: int, error: str, now: float) -> None:
    """What waits to be sent to a person is not sent."""
    with store.transaction() as db:
        db.execute(
            "UPDATE parts SET state = 'cancelled', error = ?, time = ? WHERE state = 'ready' AND turn IN "
            "(SELECT id FROM turns WHERE person = ? AND state = 'open')",
            (error, now, person_id),
        )


def recover(store: Store, now: float) -> int:
    """After a crash, when no one else delivers: what was being sent may have been sent."""
    with store.transaction() as db:
        return db.execute("UPDATE parts SET state = 'unknown', time = ? WHERE state = 'sending'", (now,)).rowcount


def forget(store: Store, person_id: int, now: float) -> None:
    """Delete all that was said in a conversation. Who opted out stays out; event ids stay as digests."""
    with store.transaction() as db:
        remember_sent(db, "turns.person = ? AND turns.state = 'closed'", (person_id,), now)
        db.execute("DELETE FROM turns WHERE person = ? AND state = 'closed'", (person_id,))
        db.execute("DELETE FROM messages WHERE person = ? AND state != 'new'", (person_id,))
    store.erase_log()


def retain(store: Store, days: float, now: float) -> None:
    """Delete what is older than so many days, and what was remembered for deduplication longer than Meta retries."""
    before = now - 86400 * days
    with store.transaction() as db:
        num = db.execute("DELETE FROM messages WHERE received < ? AND state != 'new'", (before,)).rowcount
        remember_sent(db, "turns.created < ? AND turns.state = 'closed'", (before,), now)
        db.execute("DELETE FROM turns WHERE created < ? AND state = 'closed'", (before,))
        db.execute("DELETE FROM seen WHERE time < ?", (now - 86400 * SEEN_DAYS,))
        gone = (
            "SELECT id FROM people WHERE created < ? AND last_user_time < ? AND opted_out = 0 "
            "AND NOT EXISTS (SELECT 1 FROM messages WHERE person = people.id) "
            "AND NOT EXISTS (SELECT 1 FROM turns WHERE person = people.id)"
        )
        db.execute(f"DELETE FROM aliases WHERE person IN ({gone})", (before, before))
        db.execute(f"DELETE FROM people WHERE id IN ({gone})", (before, before))
    if num:
        store.erase_log()


def counts(store: Store) -> dict[str, dict[str, int]]:
    """Of each channel, how often what has happened."""
    seen: dict[str, dict[str, int]] = {}
    for row in store.db.execute("SELECT * FROM counts ORDER BY channel, num DESC"):
        seen.setdefault(row["channel"], {})[row["name"]] = row["num"]
    return seen
