"""Unfinished work under other settings: it is resumed, refused or moved aside, and never deleted.

The request for a stage is in `OUT.partial/.request.json`: its config but for the fields that change nothing of
what is learnt, and the hashes of its parents. A config that an earlier Herd wrote is compared as one of today: fields
that were renamed are found by their old names, fields that were added since have their defaults, and fields that are
gone are left out. Imports no torch.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from herd.config import HOW_IT_RUNS
from herd.config.renamed import old_names
from herd.core.files import free_name, lock_folder, read_json, work_folder, write_json
from herd.core.lineage import (
    CHANGED,
    CHANGES,
    REQUEST,
    SECONDS,
    STATE,
    commit_finished,
    hash_of,
    read_lineage,
    saved_step,
)
from herd.errors import HerdError

Unfinished = Literal["resume", "resume with changes", "restart"]
"""What to do with unfinished work: resume if nothing has changed, resume whatever has changed, or start over."""
Changes = dict[str, tuple[Any, Any]]
"""Name of a setting or a parent → its value before, its value now."""


def unfinished_mode(*, resume_with_changes: bool, restart: bool) -> Unfinished:
    """The mode that two options of a command line ask for."""
    if resume_with_changes and restart:
        raise HerdError("--resume-with-changes resumes and --restart starts over: give one of them")
    return "restart" if restart else "resume with changes" if resume_with_changes else "resume"


def how_it_runs(config: Any) -> set[str]:
    """The fields that change nothing of what a stage writes."""
    return {field.name for field in dataclasses.fields(config) if field.metadata == HOW_IT_RUNS}


def with_defaults(stored: Mapping[str, Any], today: Any, table: str = "") -> dict[str, Any]:
    """A stored config with the fields of the config `today`, which gives those that were not stored. `table`: where in
    the stage's config it is, as `optimizer.`."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(today):
        value, place = getattr(today, field.name), f"{table}{field.name}"
        key = next((name for name in (field.name, *old_names(place)) if name in stored), field.name)
        if dataclasses.is_dataclass(value):
            inner = stored.get(key)
            values[field.name] = with_defaults(inner if isinstance(inner, Mapping) else {}, value, f"{place}.")
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            values[field.name] = stored.get(key, [dataclasses.asdict(item) for item in value])
        else:
            values[field.name] = stored.get(key, value)
    plain: dict[str, Any] = json.loads(json.dumps(values))  # tuples as the lists that a file gives back
    return plain


def settings_of(config: Any) -> dict[str, Any]:
    """What decides what a stage writes."""
    return {k: v for k, v in with_defaults({}, config).items() if k not in how_it_runs(config)}


def request(config: Any, parents: Mapping[str, Path]) -> dict[str, Any]:
    """What a stage is asked for."""
    return {"config": settings_of(config), "parents": {role: hash_of(folder) for role, folder in parents.items()}}


def changes(before: Mapping[str, Any], now: Mapping[str, Any], config: Any) -> Changes:
    """What differs between two requests, the first of which may be an earlier Herd's."""
    stored = with_defaults(before["config"], type(config)())
    old, new = (dict(_flat(settings)) for settings in (stored, now["config"]))
    found = {name: (old.get(name), value) for name, value in new.items() if old.get(name) != value}
    roles = [*before["parents"], *(role for role in now["parents"] if role not in before["parents"])]
    folders = {role: (before["parents"].get(role), now["parents"].get(role)) for role in roles}
    return found | {role: pair for role, pair in folders.items() if pair[0] != pair[1]}


def changes_since(out: Path, config: Any, parents: Mapping[str, Path]) -> Changes:
    """What differs between what the finished folder `out` was made of and what is asked for now."""
    lineage = read_lineage(out)
    made = {"config": lineage["config"], "parents": {role: of["hash"] for role, of in lineage["parents"].items()}}
    return changes(made, request(config, parents), config)


def describe(differ: Changes) -> str:
    """`optimizer.matrix_lr 0.02 → 0.01, num_tokens 100 → 200`."""
    return ", ".join(f"{name} {_short(old)} → {_short(new)}" for name, (old, new) in differ.items())


def prepare_work(out: Path, config: Any, wanted: Mapping[str, Any], how: Unfinished) -> None:
    """Prepare the unfinished work of `out` to resume with what is `wanted`, the request for `config`. Raises
    HerdError where it was started with other settings."""
    work = work_folder(out)
    mark = work / REQUEST
    (work / CHANGED).unlink(missing_ok=True)
    if not has_work(work):
        for name in (SECONDS, CHANGES):
            (work / name).unlink(missing_ok=True)
        write_json(mark, wanted)
    elif not mark.exists():
        raise HerdError(f"{work} does not record its settings: give --restart to move it aside and start over")
    elif differ := changes(read_json(mark), wanted, config):
        step = saved_step(work)
        anew = "--restart to move it aside and start over"
        begun = f"{work} was begun with other settings: {describe(differ)}. Give the old ones to resume"
        if step is None:
            raise HerdError(f"{begun}, or {anew}")
        if "model" in differ:
            raise HerdError(f"{begun}, or {anew}: what is trained now began from another model")
        if how != "resume with changes":
            raise HerdError(f"{begun}, --resume-with-changes to resume from step {step} with the new ones, or {anew}")
        fields = {name: {"before": old, "after": new} for name, (old, new) in differ.items()}
        write_json(work / CHANGED, {"request": wanted, "fields": fields})
        print(f"going on from step {step} with {describe(differ)}")


def has_work(work: Path) -> bool:
    """Whether something was done in a work folder that another attempt can resume from: metrics alone are no such."""
    if not work.is_dir():
        return False
    state = [path for path in (work / STATE).glob("step-*") if re.fullmatch(r"step-\d+(\.damaged)?", path.name)]
    others = {path.name for path in work.iterdir()} - {REQUEST, CHANGED, CHANGES, SECONDS, STATE, "metrics.jsonl"}
    return bool(state or others)


def remove_if_empty(work: Path) -> None:
    """Remove a work folder that has nothing but the request, of a stage that was refused before it did anything."""
    if [path.name for path in work.iterdir()] == [REQUEST]:
        shutil.rmtree(work)


def move_aside(out: Path) -> None:
    """Give the unfinished work of `out` a name of its own, under which it can be resumed."""
    work = work_folder(out)
    if has_work(work):
        with lock_folder(work):
            aside = free_name(out)
            work.rename(work_folder(aside))
        print(f"{work} is now {work_folder(aside)}: the old settings with --out {aside} resume it")


def put_in_place(out: Path) -> bool:
    """Finish what a kill left finished but for its name; whether there was such work."""
    if not (work_folder(out) / "herd.json").exists():
        return False
    with lock_folder(work_folder(out)):
        return commit_finished(out)


@contextmanager
def report_what_is_kept(work: Path) -> Iterator[None]:
    """Within, a KeyboardInterrupt reports what is left of the work."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(*(interrupt.args or (f"stopped; {what_is_kept(work)}",))) from None


def what_is_kept(work: Path) -> str:
    """What the next attempt resumes from."""
    step = saved_step(work)
    if step is not None:
        return f"the first {step} steps are saved in {work}: re-run the same command to resume"
    if has_work(work):
        return f"what was finished is in {work}: re-run the same command to resume"
    return "nothing was saved yet: the same command starts over"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"{text[:13]}…" if isinstance(value, str) and len(text) > 40 else text
