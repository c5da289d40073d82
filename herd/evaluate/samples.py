"""Samples to be read: continuations of held-out text, answers to held-out chats, words for pictures.

Nothing is picked by hand: the first by document id or by a hash of the id.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from herd.data.tasks.chats import Chat
from herd.errors import HerdError
from herd.evaluate.inputs import TRAIN, DataFolder
from herd.evaluate.naming import NamingQuestions
from herd.evaluate.questions import Asker, Done, has_media, text_of
from herd.evaluate.run_folder import StageFolder, config_json

BASE_STAGES = ("pretrain", "midtrain")  # whose models are not asked to chat
PROMPT_BYTES = 160
PICTURE_SIDE = 160  # pixels of a picture in the report
SAMPLING = {"temperature": 0.7, "top_p": 0.95}
SAMPLE_TOKENS = 48
"""Longest answer where no evaluation set one."""
SAMPLE_RULE = (
    "Texts: the beginning of the first held-out document of each language by id, continued at temperature 0.7, top-p "
    "0.95. Chats: the first held-out chats by a hash of the id, answered greedily. Pictures: the first of each split "
    "by a hash of the id, those with names in more of the languages before others."
)


def continuations(
    asker: Asker, held: Mapping[str, Sequence[str]], *, max_tokens: int, seed: int, done: Done
) -> list[dict[str, Any]]:
    """One continuation for each language."""
    begins = {language: _beginning(texts[0]) for language, texts in held.items() if texts}
    prompts = [asker.model.prompt_of_text(begin) for begin in begins.values()]
    texts = asker.ask(prompts, max_tokens=max_tokens, done=done, seed=seed, **SAMPLING)
    return [
        {"language": language, "prompt": begin, "text": text}
        for (language, begin), text in zip(begins.items(), texts, strict=True)
    ]


def _beginning(text: str) -> str:
    """The first bytes of a text, up to the end of a word."""
    cut = text.encode()[:PROMPT_BYTES].decode(errors="ignore")
    words = cut.rsplit(" ", 1)
    return words[0] if len(words) == 2 and len(cut) < len(text) else cut


def select_chats(chats: Sequence[Chat], *, each: int) -> list[Chat]:
    """The first held-out chats without one right answer, of each language."""
    by_language: dict[str, list[Chat]] = {}
    for chat in chats:
        if chat.split != TRAIN and not chat.answer:
            by_language.setdefault(chat.language, []).append(chat)
    return [chat for language in sorted(by_language) for chat in by_language[language][:each]]


def chat_samples(asker: Asker, chats: Sequence[Chat], *, max_tokens: int, done: Done) -> list[dict[str, Any]]:
    """The model's answers to those of the chats that fit its context."""
    rendered = [(chat, asker.prompt(chat.question)) for chat in chats]
    fitting = [(chat, prompt) for chat, prompt in rendered if asker.fits(prompt)]
    answers = asker.ask([prompt for _, prompt in fitting], max_tokens=max_tokens, done=done)
    return [
        {"language": chat.language, "question": text_of(chat.question), "answer": answer}
        for (chat, _), answer in zip(fitting, answers, strict=True)
    ]


def picture_samples(
    split: str, asked: Sequence[NamingQuestions], answers: Sequence[Sequence[str]], *, count: int
) -> list[dict[str, Any]]:
    """The first pictures with the answers in every language, right and wrong."""
    words: dict[str, list[dict[str, Any]]] = {}
    pictures = {}
    for one, given in zip(asked, answers, strict=True):
        right = one.group(given).hit_PP.diagonal()
        for picture, answer, hit in zip(one.pictures, given, right, strict=True):
            pictures[picture.id] = picture
            name = picture.names[one.language]
            words.setdefault(picture.id, []).append(
                {"language": one.language, "name": name, "answer": answer, "right": bool(hit)}
            )
    first = sorted(words, key=lambda name: -len(words[name]))[:count]  # stable: ties stay in the order of the hash
    return [
        {"id": name, "split": split, "image": thumbnail(pictures[name].png), "answers": words[name]} for name in first
    ]


def thumbnail(png: bytes) -> str:
    """A small picture as a data URI."""
    from herd.data.media.image import read_picture

    picture = read_picture(png)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def stage_samples(stages: Sequence[StageFolder]) -> dict[str, Any]:
    """Samples of the last finished stage of a run that has a language model and its data at hand."""
    from herd.engine.load import load
    from herd.engine.pipeline import AnswerPipeline

    models = [one for one in stages if one.finished and config_json(one) is not None]
    found = [
        one for one in models if one.lineage["stage"] not in {"model", "vision"} and "data" in one.lineage["parents"]
    ]
    if not found:
        raise HerdError("no stage here has a model of language: leave --samples out")
    path = Path(found[-1].lineage["parents"]["data"]["path"])
    if not path.is_dir():
        raise HerdError(f"the data folder {path} of {found[-1].path} is not there: leave --samples out")
    data, model = DataFolder(path), load(found[-1].path)
    engine = model.engine(max_num_seqs=16, max_model_len=min(model.config.max_positions, 512))
    try:
        asker = Asker(AnswerPipeline(model, engine), {}, {})
        texts = continuations(asker, data.heldout_texts, max_tokens=SAMPLE_TOKENS, seed=0, done=lambda _: None)
        words = [chat for chat in data.chats if not has_media(chat.messages)]
        chats = select_chats(words, each=1) if found[-1].lineage["stage"] not in BASE_STAGES else []
        answers = chat_samples(asker, chats, max_tokens=SAMPLE_TOKENS, done=lambda _: None)
    finally:
        engine.close()
    return {"rule": SAMPLE_RULE, "continuations": texts, "chats": answers}
