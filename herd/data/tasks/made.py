"""The tasks in cells that are made of nothing but a seed, by name."""

from collections.abc import Callable, Mapping
from functools import partial

from herd.data.tasks.answers import AnswersTask
from herd.data.tasks.chains import ChainsTask
from herd.data.tasks.digits import DigitsTask
from herd.data.tasks.safety.task import SafetyTask
from herd.data.tasks.search import SearchTask
from herd.data.tasks.spelling import SpellingTask
from herd.data.tasks.task import CellTask

MADE: Mapping[str, Callable[..., CellTask]] = {
    "digits": DigitsTask,
    "spelling": SpellingTask,
    "chains": ChainsTask,
    "search": SearchTask,
    "answers": AnswersTask,
    "refusals": partial(SafetyTask, side="refusals"),
    "twins": partial(SafetyTask, side="twins"),
}
