"""`herd channels status`: what is in the store, without what was said."""

import json
import time
from pathlib import Path
from typing import Any

from herd.errors import HerdError
from herd.serve.channels import outbox
from herd.serve.channels.config import read_config
from herd.serve.channels.store import Store


def status(path: Path, *, release: str, as_json: bool) -> None:
    """Print it; with `release`, give a conversation back to the model first."""
    config = read_config(path)
    if not config.store.exists():
        raise HerdError(f"{config.store} does not exist yet: run herd channels serve {path} MODEL")
    store = Store(config.store)
    try:
        if release:
            _release(store, release)
        found = report(store, time.time())
    finally:
        store.close()
    print(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(_lines(found)))


def _release(store: Store, person: str) -> None:
    sql = "UPDATE people SET handed_over_until = 0 WHERE id = ?"
    with store.transaction() as db:
        if not person.isdigit() or db.execute(sql, (int(person),)).rowcount == 0:
            raise HerdError(
                f"there is no conversation {person!r}: herd channels status lists those that can be released"
            )


def report(store: Store, now: float) -> dict[str, Any]:
    """Counts of each channel, parts by state, messages that wait, and conversations that a person has."""
    db = store.db

    def rows(sql: str, *values: float) -> list[dict[str, Any]]:
        return [dict(row) for row in db.execute(sql, values)]

    return {
        "counts": outbox.counts(store),
        "waiting": db.execute("SELECT count(*) FROM messages WHERE state = 'new'").fetchone()[0],
        "parts": {row["state"]: row["num"] for row in rows("SELECT state, count(*) AS num FROM parts GROUP BY state")},
        "unknown": rows(
            "SELECT parts.id AS part, person, channel, parts.time, error FROM parts JOIN turns ON turns.id = turn "
            "JOIN people ON people.id = person WHERE parts.state = 'unknown' ORDER BY parts.time DESC LIMIT 100"
        ),
        "handed_over": rows(
            "SELECT id, channel, phone, user_id, handed_over_until FROM people WHERE handed_over_until > ?", now
        ),
    }


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"{found['waiting']} messages wait for an answer"]
    lines += [f"{num} parts {state}" for state, num in found["parts"].items()]
    for one in found["unknown"]:
        lines.append(f"not known whether sent: part {one['part']} of conversation {one['person']} on {one['channel']}")
    for one in found["handed_over"]:
        name = one["phone"] or one["user_id"]
        lines.append(f"a person has conversation {one['id']} with {name} on {one['channel']} (--release {one['id']})")
    for channel, counts in found["counts"].items():
        lines += [channel, *(f"{num:8} {name}" for name, num in counts.items())]
    return lines
