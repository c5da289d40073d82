"""Events into the store, before the webhook is acknowledged: one transaction a delivery.

In whatever order they come: an edit before its message stands for it, a deletion before its message keeps it out.
"""

import sqlite3
from collections.abc import Iterable

from herd.serve.channels.events import Event
from herd.serve.channels.store import Store, count, find_person, is_seen, move, person_of, remember_sent, see, sent_text

FUTURE_S = 300
"""Meta's clock may be so far ahead; what is later, or has no time, came now."""
UNSTORABLE = (sqlite3.InterfaceError, sqlite3.IntegrityError, sqlite3.ProgrammingError, ValueError, OverflowError)
FOREVER = 1e12
OURS_S = 600
"""An echo with the text of what we sent so long ago is ours."""


def receive(store: Store, channel: str, events: Iterable[Event], *, now: float, handover_hours: float) -> bool:
    """Write down what happened; whether something is to be done now."""
    erased, wakes = False, False
    with store.transaction() as db:
        for event in events:
            if event.kind == "ignored":
                count(db, channel, f"ignored {event.name}")
                continue
            db.execute("SAVEPOINT event")
            try:
                erased |= _apply(db, channel, event, now, handover_hours)
            except UNSTORABLE:  # it would be so each time that Meta sends it again
                db.execute("ROLLBACK TO event")
                count(db, channel, "ignored: not to be stored")
            db.execute("RELEASE event")
            wakes |= event.kind in ("message", "edit", "status", "echo")
    if erased:
        store.erase_log()
    return wakes


def _apply(db: sqlite3.Connection, channel: str, event: Event, now: float, handover_hours: float) -> bool:
    """Write down one event; whether something was deleted."""
    if not see(db, channel, event.key, now):
        count(db, channel, "duplicate")
        return False
    count(db, channel, event.kind)
    if event.kind == "message":
        _insert(db, channel, event, now)
    elif event.kind == "edit":
        _edit(db, channel, event, now)
    elif event.kind == "revoke":
        return _revoke(db, channel, event, now)
    elif event.kind == "status":
        _status(db, channel, event, now)
    elif event.kind == "echo":
        _echo(db, channel, event, now, _until(now, handover_hours))
    elif event.kind == "moved":
        move(db, channel, event.who, event.new, now)
    elif event.kind == "handover":
        person = person_of(db, channel, event.who, now)
        until = 0.0 if event.ours else _until(now, handover_hours)
        db.execute("UPDATE people SET handed_over_until = ? WHERE id = ?", (until, person))
    return False


def _until(now: float, hours: float) -> float:
    return now + 3600 * hours if hours else FOREVER


def _insert(db: sqlite3.Connection, channel: str, event: Event, now: float, edit_order: float = -1) -> None:
    person = person_of(db, channel, event.who, now)
    time = event.time if 0 < event.time <= now + FUTURE_S else now
    # Answers go to whom the latest message came from: by its number if it had one, else by the id.
    db.execute(
        "UPDATE people SET phone = ?, user_id = CASE WHEN ? != '' THEN ? ELSE user_id END, last_user_time = ? "
        "WHERE id = ? AND last_user_time <= ?",
        (event.who.phone, event.who.user_id, event.who.user_id, time, person, time),
    )
    done = db.execute(
        "INSERT OR IGNORE INTO messages (person, mid, role, text, name, time, received, edit_order, state) "
        "VALUES (?, ?, 'user', ?, ?, ?, ?, ?, 'new')",
        (person, _mid(channel, event.message_id), event.text, event.name, time, now, edit_order),
    )
    for one in event.media if done.rowcount else ():
        sql = "INSERT INTO media (message, ref, mime) VALUES (?, ?, ?)"
        db.execute(sql, (done.lastrowid, one.ref, one.mime))


def _mid(channel: str, message_id: str) -> str:
    return f"{channel} {message_id}"


def _edit(db: sqlite3.Connection, channel: str, event: Event, now: float) -> None:
    row = db.execute("SELECT * FROM messages WHERE mid = ?", (_mid(channel, event.message_id),)).fetchone()
    if row is not None:
        if row["state"] != "dropped" and event.order > row["edit_order"]:
            sql = "UPDATE messages SET text = ?, edit_order = ? WHERE id = ?"
            db.execute(sql, (event.text, event.order, row["id"]))
    elif event.who and see(db, channel, event.message_id, now):
        # It overtook its message, and stands for it: what comes later under that id is a duplicate.
        _insert(db, channel, event, now, event.order)


def _revoke(db: sqlite3.Connection, channel: str, event: Event, now: float) -> bool:
    """Remove a message from store and memory; whether there was one."""
    row = db.execute("SELECT * FROM messages WHERE mid = ?", (_mid(channel, event.message_id),)).fetchone()
    see(db, channel, event.message_id, now)  # if it comes later, it is not answered
    if row is None:
        return False
    db.execute("DELETE FROM media WHERE message = ?", (row["id"],))
    sql = "UPDATE messages SET text = '', name = '', state = 'dropped', reason = 'revoked' WHERE id = ?"
    db.execute(sql, (row["id"],))
    left = "SELECT 1 FROM messages WHERE turn = ? AND role = 'user' AND reason != 'revoked'"
    if row["turn"] is not None and not db.execute(left, (row["turn"],)).fetchone():
        # The answer may repeat what was said.
        remember_sent(db, "turns.id = ?", (row["turn"],), now)
        db.execute("DELETE FROM messages WHERE turn = ? AND role = 'assistant'", (row["turn"],))
        sql = "UPDATE parts SET state = 'cancelled', error = 'revoked', time = ? WHERE turn = ? AND state = 'ready'"
        db.execute(sql, (now, row["turn"]))
        db.execute("UPDATE parts SET text = '' WHERE turn = ?", (row["turn"],))
    return True


def _status(db: sqlite3.Connection, channel: str, event: Event, now: float) -> None:
    """A receipt: what was not known to be sent was sent; or what was sent has failed later."""
    count(db, channel, f"status {event.name}")
    if event.token:
        where, value = "token", event.token
    elif event.message_id:
        where, value = "message_id", event.message_id
    else:
        return
    if event.name == "failed":
        sql = f"UPDATE parts SET state = 'failed', error = 'reported later', time = ? WHERE {where} = ?"
        db.execute(sql, (now, value))
        return
    _resolve(db, where, value, event.message_id, now)


def _resolve(db: sqlite3.Connection, where: str, value: object, message_id: str, now: float) -> bool:
    """Whether there is such a part; it was sent."""
    row = db.execute(f"SELECT id, turn, state FROM parts WHERE {where} = ?", (value,)).fetchone()
    if row is None:
        return False
    if row["state"] in ("sending", "unknown"):
        db.execute(
            "UPDATE parts SET state = 'sent', message_id = CASE WHEN ? != '' THEN ? ELSE message_id END, error = '', "
            "time = ? WHERE id = ?",
            (message_id, message_id, now, row["id"]),
        )
        db.execute("UPDATE turns SET next_try = 0 WHERE id = ?", (row["turn"],))
    return True


def _echo(db: sqlite3.Connection, channel: str, event: Event, now: float, until: float) -> None:
    """A message from our side: of ours a receipt, of a person a handover."""
    person = find_person(db, channel, event.who)
    if event.token and _resolve(db, "token", event.token, event.message_id, now):
        return
    if _resolve(db, "message_id", event.message_id, event.message_id, now):
        return
    row = db.execute(
        "SELECT parts.id FROM parts JOIN turns ON turns.id = parts.turn WHERE turns.person = ? AND parts.text = ? "
        "AND parts.text != '' AND (parts.state IN ('sending', 'unknown') OR (parts.state = 'sent' AND parts.time > ?)) "
        "ORDER BY parts.state = 'sent', parts.id LIMIT 1",
        (person, event.text, now - OURS_S),
    ).fetchone()
    if row is not None:
        _resolve(db, "id", row["id"], event.message_id, now)
        return
    if any(is_seen(db, channel, key) for key in (event.token, sent_text(event.who, event.text)) if key):
        return  # ours, and deleted since
    count(db, channel, "echo of a person")
    if not event.who:
        return
    if person is None:
        person = person_of(db, channel, event.who, now)
    db.execute("UPDATE people SET handed_over_until = ? WHERE id = ?", (until, person))
    db.execute(
        "INSERT OR IGNORE INTO messages (person, mid, role, text, time, received, state) "
        "VALUES (?, ?, 'assistant', ?, ?, ?, 'said')",
        (person, _mid(channel, event.message_id), event.text, event.time or now, now),
    )
