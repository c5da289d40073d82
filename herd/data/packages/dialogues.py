"""Chats: questions about pictures, flags, capitals, clips and sums in thirteen languages, and chatterbot's dialogues.

Every row ends with the assistant's message. A question with one right answer is answered with just that, and `answer`
repeats it; free talk has an empty `answer`. What is held out never occurs in a training row: pictures and clips by
themselves, flags and capitals as pairs of country and language, sums and tasks by the problem, dialogues by their first
line.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from herd.config import LANGUAGES
from herd.data.loading.tables import Clip, Picture
from herd.data.packages import wordings
from herd.data.packages.names import capital_names, country_names
from herd.data.sources.fetch import Pack
from herd.data.tasks import gym
from herd.data.tasks.chats import Chat
from herd.data.tasks.gym import GymTask
from herd.data.text.documents import digest
from herd.data.text.normalise import normalise
from herd.data.text.splits import held_out

CHATTERBOT = {
    "english": "en", "german": "de", "french": "fr", "spanish": "es", "italian": "it", "portuguese": "pt",
    "russian": "ru", "japanese": "ja", "chinese": "zh", "indonesian": "id", "hindi": "hi",
}  # fmt: skip
MAX_TURN_CHARS = 300
MAX_TURNS = 8
_UNSUITABLE = re.compile(r"\b(sex\w*|porn\w*|fuck\w*|shit\w*|nude|naked|suicid\w*|bitch\w*|nazi\w*|hitler)\b", re.I)

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Content = str | list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Caps:
    """The most training rows of each kind."""

    names: int
    captions: int
    flags: int
    capitals: int
    sums: int
    tasks: int
    dialogues: int
    clips: int


def all_chats(
    packs: dict[str, Pack],
    pictures: Sequence[Picture],
    clips: Sequence[Clip],
    caps: Caps,
    *,
    heldout: float,
    seed: int,
    left_out: Counter[str],
) -> list[Chat]:
    """Every chat that the packages there allow, by id; `left_out` counts those that were not taken, by the reason."""

    def limited(chats: Iterable[Chat], name: str) -> Iterator[Chat]:
        return _limited(chats, name, getattr(caps, name), left_out)

    things = [picture for picture in pictures if picture.source != "flag"]
    chats = [
        *limited(_about_pictures("name", things, wordings.NAME), "names"),
        *limited(_about_pictures("caption", things, wordings.CAPTION), "captions"),
        *limited(_flags(packs, pictures, heldout), "flags"),
        *limited(_capitals(packs, heldout), "capitals"),
        *limited(_about_clips(clips), "clips"),
        *limited(_dialogues(packs, heldout, left_out), "dialogues"),
        *_identity(),
    ]
    if "reasoning-gym" in packs:
        pack = packs["reasoning-gym"]
        # More than wanted, as some are held out and the easy ones come again and again.
        sums = GymTask(gym.SUMS, num=2 * caps.sums, seed=seed, pack=pack, wording=_sum_wording)
        others = GymTask(gym.OTHERS, num=2 * caps.tasks, seed=seed, pack=pack)
        chats += [*limited(_sums(sums, heldout), "sums"), *limited(_tasks(others, heldout), "tasks")]
    return sorted({chat.id: chat for chat in chats}.values(), key=lambda chat: chat.id)


def _limited(chats: Iterable[Chat], name: str, cap: int, left_out: Counter[str]) -> Iterator[Chat]:
    """Each chat once, at most `cap` training rows, drawn by their hashes; what is held out stays whole."""
    taken = 0
    unique = {chat.id: chat for chat in chats}
    for chat in sorted(unique.values(), key=lambda chat: digest(chat.id)):
        if chat.split == "heldout":
            yield chat
        elif taken < cap:
            taken += 1
            yield chat
        else:
            left_out[f"{name}: more than {cap} for training"] += 1


def _chat(
    kind: str, split: str, language: str, messages: list[dict[str, Any]], *, answer: str = "", verifier: str = ""
) -> Chat:
    name = f"{kind}/{digest(repr((language, messages)))}"
    return Chat(id=name, split=split, kind=kind, language=language, messages=messages, answer=answer, verifier=verifier)


def _asked(kind: str, split: str, language: str, question: Content, answer: str, *, verifier: str = "") -> Chat:
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    messages.append({"role": "assistant", "content": answer})
    return _chat(kind, split, language, messages, answer=answer, verifier=verifier)


def _pick(options: tuple[str, ...], *place: str) -> str:
    return options[int(digest("\0".join(place)), 16) % len(options)]


def _shown(part: dict[str, str], question: str) -> Content:
    return [part, {"type": "text", "text": question}]


def _about_pictures(kind: str, pictures: Iterable[Picture], questions: Mapping[str, tuple[str, ...]]) -> Iterator[Chat]:
    for picture in pictures:
        answers = picture.names if kind == "name" else picture.captions
        for language, answer in answers.items():
            question = _pick(questions[language], kind, picture.id, language)
            shown = _shown({"type": "image", "picture": picture.id}, question)
            yield _asked(kind, "train" if picture.split == "train" else "heldout", language, shown, answer)


def _flags(packs: dict[str, Pack], pictures: Iterable[Picture], heldout: float) -> Iterator[Chat]:
    countries = country_names(packs)
    for picture in pictures:
        if picture.source != "flag":
            continue
        for language, country in countries[picture.subject].items():
            out = held_out("flag", picture.subject, language, share=heldout)
            question = _pick(wordings.FLAG[language], "flag", picture.id, language)
            shown = _shown({"type": "image", "picture": picture.id}, question)
            yield _asked("flag", "heldout" if out else "train", language, shown, country)


def _capitals(packs: dict[str, Pack], heldout: float) -> Iterator[Chat]:
    countries = country_names(packs)
    for code, capitals in capital_names(packs).items():
        for language, capital in capitals.items():
            out = held_out("capital", code, language, share=heldout)
            for question in wordings.CAPITAL[language][: 1 if out else None]:
                asked = question.format(country=countries[code][language])
                yield _asked("capital", "heldout" if out else "train", language, asked, capital)


def _about_clips(clips: Iterable[Clip]) -> Iterator[Chat]:
    for clip in clips:
        for language, name in clip.names.items():
            question = _pick(wordings.CLIP[language], clip.id, language)
            yield _asked("clip", clip.split, language, _shown({"type": "video", "clip": clip.id}, question), name)


def _sum_wording(i: int, problem: str) -> str:
    language = LANGUAGES[i % len(LANGUAGES)]
    return _pick(wordings.ARITHMETIC[language], "sum", problem, language).format(problem=problem)


def _sums(task: GymTask, heldout: float) -> Iterator[Chat]:
    for i in range(len(task)):
        yield _of_task("arithmetic", task, i, LANGUAGES[i % len(LANGUAGES)], heldout)


def _tasks(task: GymTask, heldout: float) -> Iterator[Chat]:
    for i in range(len(task)):
        yield _of_task("task", task, i, "en", heldout)


def _of_task(kind: str, task: GymTask, i: int, language: str, heldout: float) -> Chat:
    split = "heldout" if held_out(kind, task.text(i), share=heldout) else "train"
    [asked], answer = task.prompt(i), task.solution(i)
    return _asked(kind, split, language, asked["content"], answer, verifier=task.problem(i).to_json())


def _dialogues(packs: dict[str, Pack], heldout: float, left_out: Counter[str]) -> Iterator[Chat]:
    """Chatterbot's conversations. A first line that is held out is not asked later on in a training one either."""
    if "chatterbot-corpus" not in packs:
        return
    pack = packs["chatterbot-corpus"]
    trained = {(chat.language, _bare(chat.messages[0]["content"])) for chat in _identity()}

    def out(language: str, question: str) -> bool:
        place = (language, _bare(question))
        return place not in trained and held_out("chat", *place, share=heldout)

    for name in pack.names(".yml"):
        language = CHATTERBOT.get(name.split("/")[-2])
        if not language:
            continue
        for turns in yaml.load(pack.read(name), Loader=_Loader).get("conversations") or []:
            texts = _turns(turns)
            if not texts:
                left_out["dialogues: not turns of short and decent text"] += 1
                continue
            first, *later = (out(language, text) for text in texts[::2])
            if not first and any(later):
                left_out["dialogues: with a line that is held out"] += 1
                continue
            messages = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]
            split = "heldout" if first else "train"
            yield _chat("chat", split, language, messages)


def _turns(turns: Any) -> list[str]:
    """The turns of a conversation up to an answer; none where they are not short and decent text."""
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        return []
    texts = [normalise(turn) for turn in turns[: min(len(turns) // 2 * 2, MAX_TURNS)]]
    decent = all(0 < len(text) <= MAX_TURN_CHARS and not _UNSUITABLE.search(text) for text in texts)
    return texts if decent else []


def _bare(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


def _identity() -> Iterator[Chat]:
    for language in LANGUAGES:
        questions, answer = wordings.IDENTITY[language]
        pairs = [*((question, answer) for question in questions), *wordings.SMALL_TALK[language]]
        for question, reply in pairs:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
            yield _chat("chat", "train", language, messages)
