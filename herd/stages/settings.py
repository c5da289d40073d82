"""What TOML read, as the dataclass of a stage's settings.

Errors name the file, the table, the key and the value; a misspelt name with the nearest right one, a
name of an earlier version with today's.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from herd.config import LoraConfig
from herd.config.renamed import new_name, why_removed
from herd.core.numbers import whole_number
from herd.errors import HerdError, unknown


def refuse_renamed(kind: str, values: Mapping[str, Any], *, where: str, above: str = "") -> None:
    """Raise HerdError for the first key of a stage's table that an earlier version had, under another name or not."""
    for key, value in values.items():
        if (why := why_removed(kind, f"{above}{key}")) is not None:
            raise HerdError(f"{where} {above}{key}: this setting was removed, {why}")
        if (now := new_name(kind, f"{above}{key}")) is not None:
            place = "" if now[0] == kind else f" of [{now[0]}]"
            raise HerdError(f"{where} {above}{key}: this setting is now {now[1]}{place}")
        if isinstance(value, Mapping):
            refuse_renamed(kind, value, where=where, above=f"{above}{key}.")


def make_config(cls: Any, values: Mapping[str, Any], *, where: str, base: Any = None) -> Any:
    """The dataclass `cls` with `values` in its fields, the others as in `base` or by default."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise unknown(f"key in {where}:", key, fields)
        given[key] = _convert(value, hints[key], fields[key], f"{where} {key}")
    missing = [name for name, field in fields.items() if base is None and name not in given and not _has_default(field)]
    if missing:
        raise HerdError(f"{where} lacks {', '.join(missing)}")
    try:
        return cls(**given) if base is None else dataclasses.replace(base, **given)
    except ValueError as error:  # a config that checks itself names the values; here the place is added
        raise HerdError(f"{where}: {error}") from error


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _item(value: Any, hint: Any, field: "dataclasses.Field[Any]", where: str) -> Any:
    """One of several values; a table in `[[…]]` is a dataclass of its own, without one to begin with."""
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return make_config(hint, value, where=where)
    return _convert(value, hint, field, where)


def _convert(value: Any, hint: Any, field: "dataclasses.Field[Any]", where: str) -> Any:
    """What TOML read, as the type that the field asks for."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in {types.UnionType, typing.Union}:  # only `X | None`, and TOML has no None
        [hint] = [option for option in inner if option is not type(None)]
        return _convert(value, hint, field, where)
    if hint is LoraConfig and not isinstance(value, dict):
        value = {LoraConfig.SHORT: value}  # lora = 16
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return make_config(hint, value, where=where, base=_default(field))
    if origin is typing.Literal and value not in inner:
        raise unknown(f"value in {where} =", str(value), map(str, inner))
    if origin is tuple and isinstance(value, list) and (len(value) == len(inner) or inner[1:] == (...,)):
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else inner
        places = (f"{where}[{index}]" for index in range(len(value)))
        return tuple(_item(item, kind, field, at) for item, kind, at in zip(value, kinds, places, strict=True))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is int and isinstance(value, str) and value[-1:].lower() in {"k", "m", "g"}:
        try:
            return whole_number(value)
        except HerdError as error:
            raise HerdError(f"{where} = {error}") from None
    if hint is float and type(value) is int:
        return float(value)
    if origin is not typing.Literal and type(value) is not hint:  # exact, as a bool is an int to isinstance
        kind = hint.__name__ if isinstance(hint, type) and origin is None else str(hint)
        raise HerdError(f"{where} = {value!r} must be {kind}, it is {type(value).__name__}")
    return value
