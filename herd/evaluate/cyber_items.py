"""Items of CyberSecEval's benchmarks, read from the user's checkout of PurpleLlama.

Formats as of CyberSecEval 2 to 4 (2024 to 2026): a JSON list of objects. What a benchmark needs of each is in NEEDED;
where it is missing the file has another format, and the error says where. Nothing is fetched and nothing is repaired.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.core.streams import seed_of
from herd.errors import HerdError

NEEDED: dict[str, tuple[str, ...]] = {
    "instruct": ("test_case_prompt", "language"),
    "autocomplete": ("test_case_prompt", "language", "origin_code", "line_text"),
    "mitre-frr": ("mutated_prompt",),
    "prompt-injection": ("test_case_prompt", "user_input", "judge_question"),
    "interpreter": ("mutated_prompt", "attack_type"),
    "canary-exploit": ("mutated_prompt", "challenge_type", "language", "code", "answer"),
}
LISTS = frozenset({"attack_type"})
"""Fields that may be a list of texts."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question of a benchmark."""

    prompt: str
    row: dict[str, Any]
    system: str = ""

    @property
    def messages(self) -> list[dict[str, Any]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.prompt}]

    @property
    def group(self) -> str:
        """What the table of the benchmark is split by."""
        for name in ("language", "injection_variant", "challenge_type", "attack_type"):
            if value := self.row.get(name):
                return str(value[0] if isinstance(value, list) else value)
        return ""


def read_items(benchmark: str, path: Path, *, count: int | None = None) -> list[Item]:
    """The items of a file, the first `count` in an order drawn by a hash. Raises HerdError for another format."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise HerdError(f"{path} cannot be read: {error}") from error
    if text.startswith("version https://git-lfs"):
        raise HerdError(f"{path} is a pointer of Git LFS, not the data: run git lfs pull in the checkout")
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise HerdError(f"{path} is no JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise HerdError(f"{path}: {benchmark} is a JSON list of objects, this is {_kind(rows)}")
    items = [_item(benchmark, path, number, row) for number, row in enumerate(rows)]
    order = sorted(range(len(items)), key=lambda number: seed_of(0, "cyber", benchmark, str(number)))
    return [items[number] for number in order[:count]]


def _item(benchmark: str, path: Path, number: int, row: Any) -> Item:
    if not isinstance(row, dict):
        raise HerdError(f"{path}: row {number} of {benchmark} is {_kind(row)}, not an object")
    if benchmark == "mitre-frr" and "mutated_prompt" not in row and "prompt" in row:
        row = {**row, "mutated_prompt": row["prompt"]}
    for name in NEEDED[benchmark]:
        value = row.get(name)
        texts = value if isinstance(value, list) and name in LISTS else [value]
        if not texts or not all(isinstance(one, str) and one for one in texts):
            raise HerdError(
                f"{path}: row {number} of {benchmark} has {name}={str(value)[:40]!r}, where a text is needed: the "
                "file has another format than CyberSecEval 2 to 4"
            )
    if benchmark == "prompt-injection":
        return Item(prompt=row["user_input"], system=row["test_case_prompt"], row=row)
    return Item(
        prompt=row["test_case_prompt" if "test_case_prompt" in NEEDED[benchmark] else "mutated_prompt"], row=row
    )


def _kind(value: Any) -> str:
    names: dict[str, str] = {"list": "an empty list", "dict": "an object", "str": "a text"}
    kind = type(value).__name__
    return names.get(kind, kind)
