"""A JSON schema as llguidance can hold an answer to it, or the refusal of one that it cannot.

Done before an answer begins, so that none breaks in its middle:

* An object that lists its properties has no others, unless `additionalProperties` allows them; under `strict` always.
* JSON is written as Python's `json.dumps` does: one space behind a comma and a colon, no other white space.
* `format`s that llguidance does not know are annotations.
* Bounds beyond 2^53 are rounded inward to what a double holds, and to 64 bits; `const` and `enum` beyond are refused.
* A `$ref` that contains itself without end, and a property that also falls under `patternProperties` with another
  schema, are refused.

Every `$ref` becomes one to `$defs` of its own, so that the same definition can be open inside `allOf` and closed
elsewhere. Left out: `$id`, `$anchor` and references to other documents. Words of JSON Schema that llguidance does not
know stay, and are refused by it.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from herd.errors import HerdError

FORMATS = frozenset(
    {"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"},
)
"""That llguidance holds to."""
LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Free white space would let a model go on with it to its limit."""
MAX_CHARS = 100_000
"""Of a form's source."""
MAX_WORK = 100_000
"""Parts of a schema that are looked at, each as often as another refers to it: a second's work."""
EXACT = 2**53
"""Integers up to here are exact in a double, which is what llguidance reads a number as."""
LEAST, MOST = -(2**63) + 1024, 2**63 - 1
"""Bounds that llguidance can hold to: 64 bits, less what -2^63 itself would overflow."""
FAR = 10**17
"""A bound beyond needs one on the other side too."""
_DROPPED = frozenset({"$ref", "$defs", "definitions", "$id", "$anchor", "x-guidance"})
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties")
_SINGLE = ("additionalProperties", "items", "additionalItems", "unevaluatedProperties")


def prepare(schema: Any, *, root: Any = None, strict: bool = False) -> dict[str, Any]:
    """`schema`, with its references into `root` (None: itself), for llguidance. Raises HerdError where it cannot be."""
    work = _Preparation(schema if root is None else root, strict=strict)
    try:
        if (length := len(json.dumps(schema))) > MAX_CHARS:
            raise HerdError(f"the schema has {length} characters: {MAX_CHARS} are the most")
        made = work.visit(schema, "schema", is_open=False)
        if made is False:
            raise HerdError("the schema allows nothing")
        definitions: dict[str, Any] = {}
        while work.waiting:
            name, pointer, is_open = work.waiting.pop()
            definitions[name] = work.visit(work.at(pointer), pointer, is_open=is_open)
        work.refuse_endless(definitions)
    except RecursionError:
        raise HerdError("the schema is nested too deeply: make it simpler") from None
    made = {} if made is True else made
    return {**made, **({"$defs": definitions} if definitions else {}), "x-guidance": LAYOUT}


class _Preparation:
    """The way through one schema."""

    def __init__(self, root: Any, *, strict: bool) -> None:
        self._root, self._strict = root, strict
        self._names: dict[tuple[str, bool], str] = {}
        self._num_looks = 0
        self.waiting: list[tuple[str, str, bool]] = []
        """Definitions that are referred to and not yet made."""

    def _look(self, count: int = 1) -> None:
        self._num_looks += count
        if self._num_looks > MAX_WORK:
            raise HerdError("the schema has too many parts that refer to each other: make it simpler")

    def at(self, pointer: str) -> Any:
        """What `#/a/b` points to."""
        if pointer != "#" and not pointer.startswith("#/"):
            raise HerdError(f'"$ref" of {pointer!r} is not supported: write it as "#/$defs/NAME"')
        found = self._root
        for step in pointer.split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise HerdError(f'"$ref" of {pointer!r} points to nothing') from None
        return found

    def visit(self, schema: Any, where: str, *, is_open: bool) -> Any:
        """`schema` prepared; `is_open`: as a part of a whole that is closed from outside."""
        self._look()
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise HerdError(f"{where}: {str(schema)[:40]!r} is not a schema: it must be an object")
        made = {key: value for key, value in schema.items() if key not in _DROPPED}
        parts = [key for key in ("$ref", "allOf", "anyOf", "oneOf") if key in schema]
        lists = {"properties", "patternProperties", "required"} & schema.keys()
        # Of several schemas over one object none knows the names of the others: the whole is closed, not each.
        is_whole = "allOf" in schema or bool(parts and lists) or len(parts) > 1
        if "$ref" in schema:
            made = {"$ref": self._reference(schema["$ref"], where, is_open=is_open or is_whole), **made}
        for key in _LISTS:
            if isinstance(schema.get(key), list):
                inner = key not in {"prefixItems", "items"} and (is_open or is_whole)
                made[key] = [self.visit(one, f"{where}/{key}/{i}", is_open=inner) for i, one in enumerate(schema[key])]
        for key in _NAMED:
            if isinstance(schema.get(key), Mapping):
                made[key] = {
                    name: self.visit(one, f"{where}/{key}/{name}", is_open=False) for name, one in schema[key].items()
                }
        for key in _SINGLE:
            if isinstance(schema.get(key), Mapping):
                made[key] = self.visit(schema[key], f"{where}/{key}", is_open=False)
        if not is_open and (is_whole or not parts):
            self._close(schema, made, where)
        if self._strict and schema.get("additionalProperties", False) is not False:
            raise HerdError(f'{where}: "additionalProperties" must be false under "strict": leave one of them out')
        if schema.get("format") not in FORMATS:
            made.pop("format", None)
        if schema.get("propertyNames") in (True, {}, {"type": "string"}):  # which all names are
            made.pop("propertyNames")
        _bound(made, where)
        for value in [schema.get("const"), schema.get("enum")]:
            if number := next((one for one in _numbers(value) if abs(one) > EXACT), None):
                raise HerdError(
                    f"{where}: the value {str(number)[:30]} is beyond 2^53 and cannot be held to: make it a string"
                )
        return made

    def _reference(self, pointer: Any, where: str, *, is_open: bool) -> str:
        if not isinstance(pointer, str):
            raise HerdError(f'{where}: "$ref" of {str(pointer)[:40]!r} is not a text')
        self.at(pointer)
        if (pointer, is_open) not in self._names:
            name = self._names[pointer, is_open] = str(len(self._names))
            self.waiting.append((name, pointer, is_open))
        return f"#/$defs/{self._names[pointer, is_open]}"

    def _close(self, schema: Mapping[str, Any], made: dict[str, Any], where: str) -> None:
        """Forbid other properties, where the schema does not mention them."""
        names, patterns, says_more = self._listed(schema, set())
        for pattern, inner in patterns.items():
            self._look(len(names))
            others = [name for name in names if inner not in (True, {}, names[name])]
            for name in _matching(pattern, others):
                raise HerdError(
                    f'{where}: the property {name!r} also falls under "patternProperties" {pattern!r}, which is not '
                    "supported: write a pattern that it does not match"
                )
        is_closed = self._strict and "object" in (schema.get("type") or ())
        if says_more or not (names or patterns or is_closed):
            return
        for key, listed in (("properties", names), ("patternProperties", patterns)):
            if isinstance(made.setdefault(key, {}), dict):
                made[key] |= {name: {} for name in listed if name not in made[key]}
        made["additionalProperties"] = False

    def _listed(self, schema: Any, seen: set[str]) -> tuple[dict[str, Any], dict[str, Any], bool]:
        """The properties and patterns that `schema` lists, and whether it defines which others may be."""
        self._look()
        names: dict[str, Any] = {}
        patterns: dict[str, Any] = {}
        if not isinstance(schema, Mapping):
            return names, patterns, False
        says_more = "additionalProperties" in schema
        inner: list[Any] = []
        for key, value in schema.items():
            if key in _NAMED and isinstance(value, Mapping):
                (names if key == "properties" else patterns).update(value)
            elif key in {"allOf", "anyOf", "oneOf"} and isinstance(value, list):
                inner += value
            elif key == "$ref" and value not in seen:
                seen.add(value)
                inner.append(self.at(value))
        for one in inner:
            more = self._listed(one, seen)
            names, patterns = {**more[0], **names}, {**more[1], **patterns}
            says_more |= more[2]
        if isinstance(schema.get("required"), list):
            names |= {name: {} for name in schema["required"] if isinstance(name, str) and name not in names}
        return names, patterns, says_more

    def _found_ending(self, name: str, schema: Any, ending: set[str]) -> bool:
        """Whether this definition ends, which is then noted."""
        self._look()
        if _ends(schema, ending):
            ending.add(name)
        return name in ending

    def refuse_endless(self, definitions: Mapping[str, Any]) -> None:
        """Raises HerdError where a definition contains itself in all that it allows, so that no answer could end."""
        ending: set[str] = set()
        waiting = list(definitions)
        while True:
            # What was found ending counts at once, and the next round goes the other way: a chain takes two.
            left = [name for name in waiting if not self._found_ending(name, definitions[name], ending)]
            if len(left) == len(waiting):
                break
            waiting = left[::-1]
        for (pointer, _), name in self._names.items():
            if name not in ending:
                raise HerdError(
                    f'"$ref" of {pointer!r} contains itself without end: let a property on the way be left out, or be '
                    "null"
                )


def _matching(pattern: str, names: list[str]) -> list[str]:
    """Those in which the pattern occurs. By RE2, which is linear: Python's own `re` takes for ever where somebody means
    it to, and holds up all threads."""
    import pyarrow
    import pyarrow.compute

    if not names:
        return []
    try:
        found = pyarrow.compute.match_substring_regex(pyarrow.array(names, pyarrow.string()), pattern=pattern)
    except (pyarrow.ArrowException, ValueError):  # not RE2's: llguidance checks whether it is one at all
        return []
    return [name for name, is_match in zip(names, found.to_pylist(), strict=True) if is_match]


def _ends(schema: Any, ending: set[str]) -> bool:
    """Whether something that ends is allowed, where these definitions do."""
    if not isinstance(schema, Mapping):
        return bool(schema)
    if "$ref" in schema and schema["$ref"].removeprefix("#/$defs/") not in ending:
        return False
    if not all(_ends(one, ending) for one in schema.get("allOf", ())):
        return False
    if not all(any(_ends(one, ending) for one in schema[key]) for key in ("anyOf", "oneOf") if key in schema):
        return False
    kinds = schema.get("type")
    if kinds == "object":
        fields = schema.get("properties", {})
        return all(_ends(fields.get(name, True), ending) for name in schema.get("required", ()))
    if kinds == "array" and schema.get("minItems", 0):
        items = schema.get("items", True)
        firsts = schema.get("prefixItems", items if isinstance(items, list) else [])
        return all(_ends(one, ending) for one in [*firsts, *([] if firsts else [items])])
    return True


def _numbers(value: Any) -> Iterator[int]:
    match value:
        case bool():
            return
        case int():
            yield value
        case list():
            for one in value:
                yield from _numbers(one)
        case Mapping():
            yield from _numbers(list(value.values()))


def _bound(made: dict[str, Any], where: str) -> None:
    """Round bounds beyond 2^53 inward, to what llguidance holds to."""
    most = MOST if made.get("type") == "integer" else 2**63 - 1024
    for key, other, is_low in (("minimum", "exclusiveMinimum", True), ("maximum", "exclusiveMaximum", False)):
        for name in (key, other):
            value = made.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) >= EXACT:
                continue
            del made[name]
            number = int(min(max(value, -(2**64)), 2**64)) + (name == other) * (1 if is_low else -1)
            near = float(number)
            if is_low and near < number:
                near = math.nextafter(near, math.inf)
            if not is_low and near > number:
                near = math.nextafter(near, -math.inf)
            rounded = max(int(near), LEAST) if is_low else most if number >= most else int(near)
            if not LEAST <= rounded <= most:
                raise HerdError(f"{where}: {name!r} of {value} is beyond 64 bits and cannot be held to")
            made[key] = (max if is_low else min)(made.get(key, rounded), rounded)
    low, high = made.get("minimum"), made.get("maximum")
    if isinstance(low, int) and low > FAR and high is None:
        made["maximum"] = most
    if isinstance(high, int) and high < -FAR and low is None:
        made["minimum"] = LEAST
