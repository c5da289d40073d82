"""How hard chats are for a model: by its own answers, by the log-probability of the given one, by its judgement.

Each scorer takes a few chats and gives a dictionary a chat, which is kept as JSON until all are scored: `passes`,
`given` and `alone`; `grades`; or `skip`, with why the model cannot score it.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from herd.config import SelectConfig
from herd.config.engine import DEFAULT_MAX_MODEL_LEN
from herd.core.streams import seed_of
from herd.data.loading import tables
from herd.data.loading.chat_media import ChatMedia
from herd.data.tasks.chats import Chat, ChatTask
from herd.data.tokens.chat import parts_of, render_messages
from herd.engine.engine import Engine
from herd.engine.load import Model
from herd.engine.model import Prompt
from herd.engine.request import EngineRequest
from herd.engine.sampler import SamplingParams
from herd.engine.score import log_likelihoods, prompt_losses
from herd.errors import HerdError

Scored = dict[str, Any]
GRADES = ("1", "2", "3", "4", "5")
JUDGE_BEFORE, JUDGE_BETWEEN, JUDGE_AFTER = (
    "Here is a conversation with an assistant, and the assistant's last answer.\n\nConversation:\n",
    "\n\nAnswer:\n",
    "\n\nHow hard is it to answer this well? 1: anyone can, 2: easy, 3: some thought or knowledge is needed, 4: hard, "
    "5: only an expert can. Reply with the number alone.",
)
"""The one message to the judge, around the conversation and the answer."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A training chat of a data folder."""

    number: int
    """Among the training rows."""
    chat: Chat
    tools: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """One open model with what its questions need."""

    model: Model
    media: ChatMedia
    config: SelectConfig

    @property
    def context(self) -> int:
        """Tokens of the longest chat that can be scored."""
        return min(self.model.config.max_positions, DEFAULT_MAX_MODEL_LEN)

    def rendered(self, example: Example, messages: Sequence[Mapping[str, Any]], *, asks: bool) -> tuple[Prompt, Any]:
        """The prompt of messages and which of its tokens are learnt. Raises HerdError where the model cannot read
        them, the same one for all chats of a sort."""
        shown = [part for message in messages for part in parts_of(message) if part["type"] != "text"]
        if shown and not self.model.processor.reads_pictures:
            raise HerdError("it has pictures, and the model reads none")
        try:
            made = render_messages(
                self.model.tokenizer,
                self.model.processor,
                self.media.open(messages),
                tools=example.tools,
                add_generation_prompt=asks,
            )
        except HerdError:
            raise HerdError("the model's chat format refuses it") from None
        if len(made.ids) >= self.context:
            raise HerdError(f"it has more than the {self.context} tokens that the model reads")
        return Prompt(token_ids=made.ids, tiles=tuple(made.tiles)), made.learnt


def as_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Messages for a person to read; one alone without its role."""

    def text(message: Mapping[str, Any]) -> str:
        parts = [part["text"] if part["type"] == "text" else f"[{part['type']}]" for part in parts_of(message)]
        calls = [tables.to_json(call.get("function", call)) for call in message.get("tool_calls") or ()]
        return "".join(parts) + " ".join(calls)

    if len(messages) == 1:
        return text(messages[0])
    return "\n".join(f"{message['role']}: {text(message)}" for message in messages)


def score_passes(scorer: Scorer, engine: Engine, task: ChatTask, examples: Sequence[Example]) -> list[Scored]:
    """How many of `num_answers` answers are right. Answers are a function of the config's seed and the chat's id."""
    params = SamplingParams(temperature=1.0, max_tokens=scorer.config.max_tokens)
    asked: list[EngineRequest | HerdError] = []
    for example in examples:
        try:
            prompt, _ = scorer.rendered(example, example.chat.question, asks=True)
            seed = seed_of(scorer.config.seed, "select", example.chat.id)
            asked.append(engine.submit(prompt, params, seed=seed, n=scorer.config.num_answers))
        except HerdError as error:
            asked.append(error)
    scored: list[Scored] = []
    for example, request in zip(examples, asked, strict=True):
        if isinstance(request, HerdError):
            scored.append({"skip": str(request)})
            continue
        answers = Counter(output.text for output in request.result())
        right = (count for text, count in answers.items() if task.grade(example.chat.question, text).right)
        scored.append({"passes": sum(right)})
    return scored


def score_losses(scorer: Scorer, examples: Sequence[Example]) -> list[Scored]:
    """The nats of each token that the assistant says, and of the same token without all that stands before the
    assistant's turn."""
    bos = scorer.model.config.special.bos
    scored: list[Scored | None] = []
    prompts: list[Prompt] = []
    runs: list[tuple[int, list[tuple[int, int]]]] = []
    for example in examples:
        try:
            prompt, learnt = scorer.rendered(example, example.chat.messages, asks=False)
        except HerdError as error:
            scored.append({"skip": str(error)})
            continue
        if not (found := runs_of(learnt)):
            scored.append({"skip": "it has no answer"})
            continue
        runs.append((len(scored), found))
        scored.append(None)
        prompts += [prompt, *(Prompt(token_ids=[bos, *prompt.token_ids[begin:end]]) for begin, end in found)]
    losses = iter(prompt_losses(scorer.model, prompts))
    for place, found in runs:
        whole = next(losses)
        with_T = np.concatenate([whole[begin - 1 : end - 1] for begin, end in found])
        without_T = np.concatenate([next(losses) for _ in found])
        nats = {"given": with_T.round(4).tolist(), "alone": without_T.round(4).tolist()}
        finite = np.isfinite(with_T).all() and np.isfinite(without_T).all()
        scored[place] = nats if finite else {"skip": "its loss is not finite"}
    return [one for one in scored if one is not None]


def runs_of(learnt: Sequence[bool]) -> list[tuple[int, int]]:
    """Begin and end of each run of learnt tokens."""
    runs, begin = [], 0
    for value, group in groupby(learnt):
        end = begin + sum(1 for _ in group)
        runs += [(begin, end)] if value else []
        begin = end
    return runs


def score_grades(scorer: Scorer, examples: Sequence[Example]) -> list[Scored]:
    """The probabilities of the grades, of these five alone."""
    scored: list[Scored] = []
    continuations = [scorer.model.tokenizer.encode(grade) for grade in GRADES]
    for example in examples:
        chat = example.chat
        talk = [part for one in chat.question for part in [words(f"{one['role']}: "), *parts_of(one), words("\n")]]
        answer = chat.messages[len(chat.question) :]
        content = [words(JUDGE_BEFORE), *talk, words(JUDGE_BETWEEN + as_text(answer) + JUDGE_AFTER)]
        try:
            if not answer:
                raise HerdError("it has no answer")
            alone = Example(number=example.number, chat=chat)  # the judge calls no tools
            prompt, _ = scorer.rendered(alone, [{"role": "user", "content": content}], asks=True)
        except HerdError as error:
            scored.append({"skip": str(error)})
            continue
        logprobs = np.array(log_likelihoods(scorer.model, [(prompt, ids) for ids in continuations]))
        share = np.exp(logprobs - logprobs.max())
        scored.append({"grades": [round(float(one), 6) for one in share / share.sum()]})
    return scored


def words(text: str) -> dict[str, Any]:
    """A part of a content."""
    return {"type": "text", "text": text}


def read_examples(data: Path) -> list[Example]:
    """The training chats of a data folder, in its order. Raises HerdError where it has none."""
    columns = ["id", "split", "kind", "language", "messages", "answer"]
    found = tables.read(data, "chats", columns, optional=["verifier", "tools"])
    examples: list[Example] = []
    for row in found:
        if row["split"] == "train":
            tools = json.loads(row.pop("tools", "") or "[]")
            chat = Chat(**{**row, "messages": json.loads(row["messages"])})
            examples.append(Example(number=len(examples), chat=chat, tools=tools))
    if not examples:
        raise HerdError(f"{data} has no chats to train on: give a data folder with chats")
    return examples
