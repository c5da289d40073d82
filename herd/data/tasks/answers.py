"""Questions of which only the form of an answer counts: in the language asked for, in at most so many words.

What is said is not graded, so any sentence of the language is right: for preferences of form, and beside tasks that
grade what is said. An answer is graded from the question's text.
"""

import re
from collections.abc import Sequence
from typing import Any

from herd.config import LANGUAGES
from herd.core.streams import stream
from herd.data.tasks.task import UNKNOWN, Grade, Messages, asked, of_split
from herd.data.text.languages import is_language

NAMES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "ru": "Russian", "ja": "Japanese", "zh": "Chinese", "vi": "Vietnamese", "id": "Indonesian", "hi": "Hindi",
    "ar": "Arabic",
}  # fmt: skip
SENTENCES = {
    "en": "That is a good question.", "de": "Das ist eine gute Frage.", "fr": "C'est une bonne question.",
    "es": "Esa es una buena pregunta, amigo.", "it": "Questa è una bella domanda.", "pt": "Esta é uma boa pergunta.",
    "ru": "Это хороший вопрос.", "ja": "それはいい質問ですね。", "zh": "这是一个好问题。",
    "vi": "Đây là một câu hỏi hay.", "id": "Ini pertanyaan yang sangat baik.", "hi": "यह एक अच्छा सवाल है।",
    "ar": "هذا سؤال جيد.",
}  # fmt: skip
"""A right answer in each language."""
SUBJECTS = (
    "rain", "bread", "trees", "music", "the sea", "cats", "winter", "trains", "books", "salt", "the moon", "horses",
    "tea", "rivers", "clocks", "snow", "gardens", "bees", "maps", "fire", "shoes", "bridges", "apples", "stars",
    "letters", "mountains", "wind", "dogs", "doors", "glass", "gold", "sleep", "sugar", "islands", "paper", "birds",
    "wheels", "milk", "roads", "colours", "summer", "boats", "stones", "rice", "mirrors", "schools", "fish", "silver",
    "kings", "numbers",
)  # fmt: skip
"""What is asked about: a fifth of them is held out."""
QUESTION = re.compile(rf"Say something about ([a-z ]+) in ({'|'.join(NAMES.values())}), in at most ([0-9]+) words\.")
LETTERS_A_WORD = 2
"""Characters that count as a word in Chinese and Japanese, which put no spaces between words."""


class AnswersTask:
    """Cells are a language and the most words, as `de-8`."""

    def __init__(
        self,
        seed: int,
        *,
        heldout: bool | None = False,
        languages: Sequence[str] = LANGUAGES,
        lengths: Sequence[int] = (8, 16),
    ) -> None:
        self._seed, self._heldout = seed, heldout
        self._cells = {f"{language}-{length}": (language, length) for length in lengths for language in languages}

    @property
    def cells(self) -> Sequence[str]:
        return tuple(self._cells)

    def question(self, cell: str, index: int) -> str:
        """The text of question `index` of `cell`."""
        (language, length), rng = self._cells[cell], stream(self._seed, "answers", cell, index)
        subject = of_split((SUBJECTS[place] for place in rng.permutation(len(SUBJECTS))), self._heldout)
        return f"Say something about {subject} in {NAMES[language]}, in at most {length} words."

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self.question(cell, index)}]

    def solution(self, cell: str, index: int) -> str:
        return SENTENCES[self._cells[cell][0]]

    def grade(self, messages: Messages, answer: str) -> Grade:
        found = QUESTION.fullmatch(asked(messages))
        if found is None:
            return UNKNOWN
        language = next(code for code, name in NAMES.items() if name == found[2])
        length = num_words(answer, language)
        parts = {
            "language": float(bool(answer.strip()) and is_language(answer, language)),
            "words": float(0 < length <= int(found[3])),
        }
        reason = f"{length} words, {'' if parts['language'] else 'not '}in {found[2]}"
        return Grade(score=min(parts.values()), reason=reason, parts=parts)


def num_words(text: str, language: str) -> int:
    """Words of a text."""
    if language in {"zh", "ja"}:
        return -(-sum(letter.isalnum() for letter in text) // LETTERS_A_WORD)
    return len(text.split())
