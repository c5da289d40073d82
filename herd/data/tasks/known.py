"""Tasks in cells by name: what `[rl]` and `[[data.demonstrations]]` may ask for.

Those of `MADE` are made of nothing but a seed; those of `READ` read a data folder. Beside them there are
`reasoning-gym/MODULE`, such as `reasoning-gym/arithmetic.lcm`, and JSONL files of prompts with answers (`prompts`).
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from herd.data.tasks.chat_cells import ChatCells
from herd.data.tasks.gym import PACKAGE
from herd.data.tasks.gym_cells import GymCells
from herd.data.tasks.made import MADE
from herd.data.tasks.prompts import PromptsTask
from herd.data.tasks.spelling import SpellingTask
from herd.data.tasks.task import CellTask
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError, unknown


def words_of(data: Path) -> list[str]:
    """The words that are single tokens of a data folder's tokenizer."""
    tokenizer = Tokenizer.load(data / "tokenizer")
    ids = [index for index in tokenizer.vocabulary.values() if index not in tokenizer.special_ids]
    return [tokenizer.token_bytes(index).decode(errors="replace").strip() for index in ids]


READ: Mapping[str, Callable[[Path, int, bool], CellTask]] = {
    "spelling-words": lambda data, seed, heldout: SpellingTask(seed, heldout=heldout, words=words_of(data)),
    "names": lambda data, seed, heldout: ChatCells(data, seed, heldout=heldout, kinds=("name",)),
    "chats": lambda data, seed, heldout: ChatCells(data, seed, heldout=heldout),
    "prompts": lambda data, seed, heldout: PromptsTask.of_data(data, seed, heldout=heldout),
}
"""`names` are those of pictures, `chats` all chats with a right answer, `prompts` the table of prompts."""


def open_task(name: str, data: Path | None, seed: int, *, heldout: bool = False) -> CellTask:
    """The task of this name, or of a JSONL file. Raises HerdError where there is none."""
    if name in MADE:
        return MADE[name](seed, heldout=heldout)
    if name in READ:
        if data is None:
            raise HerdError(f"the task {name} reads a data folder: give --data")
        return READ[name](data, seed, heldout)
    if name.startswith(f"{PACKAGE}/"):
        return GymCells(name.removeprefix(f"{PACKAGE}/"), seed, heldout=heldout)
    if is_file(name):
        return PromptsTask.of_file(Path(name), seed, heldout=heldout)
    raise unknown("task", name, NAMES)


def is_file(name: str) -> bool:
    """Whether a name is the path of a file of prompts."""
    return Path(name).name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst"))


NAMES = (*MADE, *READ, f"{PACKAGE}/MODULE")
