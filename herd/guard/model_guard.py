"""A guard of messages: a model that answers `safe`, or `unsafe` and the categories, as Llama Guard does.

The score is P(first token = unsafe) of the two answers' first tokens; from the threshold on a message is unsafe. Its
categories are then generated under a grammar that allows codes of the policy alone, so that an answer can always be
read. A long message is read in windows that overlap, several pictures in turn: nothing is cut off, and a message is
unsafe where a part of it is. What cannot be judged raises an error; it is never safe.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from herd.core.device import choose_device
from herd.core.lineage import read_lineage
from herd.data.text.languages import MIN_IDENTIFIED, detect
from herd.engine.engine import Engine
from herd.engine.load import load
from herd.engine.model import LoadedModel, Prompt
from herd.engine.sampler import SamplingParams
from herd.engine.structure import Structure
from herd.errors import HerdError
from herd.guard.prompt import SAFE, UNSAFE, Form, Part, Role, guard_messages, last_message, text_part
from herd.guard.taxonomy import HAZARDS, Taxonomy
from herd.train.dtype import has_fast_bf16

MAX_CHARS = 10_000_000
"""A longer message is refused."""
MAX_PICTURES = 64
OVERLAP = 0.25
"""Share of a window that the next one has too."""
ROOM = 64
"""Tokens that the answer and the borders between parts may need."""
LEAST_RECALL = 0.5
"""Of the unsafe messages that a guard was measured on: one that flags fewer protects from little, and says so."""
DETECTABLE = 40
"""Characters from which the language of a message is identified."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a guard says of a message."""

    unsafe: bool
    score: float
    """P(unsafe), of the worst window."""
    categories: tuple[str, ...] = ()
    """Codes that it violates, in the order of the policy; at least one where it is unsafe."""
    windows: int = 1
    """In how many pieces it was read."""
    notes: tuple[str, ...] = ()
    """What makes the verdict less sure."""


class Guard:
    """A guard's folder, opened; the engine runs until `close`."""

    def __init__(
        self,
        folder: Path | str,
        *,
        policy: Taxonomy = HAZARDS,
        threshold: float | None = None,
        max_num_seqs: int = 32,
        context: int | None = None,
        form: Form | None = None,
    ) -> None:
        """`threshold`, `context` and the prompt's `form` are those of the training if not given; 0.5, 8192 and
        llama-guard for a guard of another program.

        Raises HerdError for a folder that is no model, or whose tokenizer cannot tell the answers apart.
        """
        path = Path(folder)
        # Logits near 64 have steps of a quarter in bf16, and so would scores; fp32 is the faster one there, too.
        model = load(path, dtype=None if has_fast_bf16(choose_device()) else torch.float32)
        facts = read_lineage(path) if (path / "herd.json").exists() else {}
        trained = facts.get("guard", {})
        if facts and not trained and facts.get("stage") != "convert":
            raise HerdError(
                f"{path} is a model of stage {facts.get('stage')!r} and no guard: herd guard train makes one"
            )
        self.facts: Mapping[str, Any] = trained
        self.model: LoadedModel = model
        self.form: Form = form or trained.get("form", "llama-guard")
        self.policy = policy
        self.threshold = trained.get("threshold", 0.5) if threshold is None else threshold
        self.languages: frozenset[str] = frozenset(trained.get("languages", ()))
        self.context = min(context or trained.get("context", 8192), model.config.max_positions)
        first = {word: model.tokenizer.encode(word)[0] for word in (SAFE, UNSAFE)}
        if first[SAFE] == first[UNSAFE]:
            raise HerdError(f"{path}: its tokenizer begins {SAFE!r} and {UNSAFE!r} with the same token: it is no guard")
        self._first = first
        self._engine: Engine = model.engine(max_num_seqs=max_num_seqs)

    def close(self) -> None:
        self._engine.close()

    def __enter__(self) -> "Guard":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def judge(self, messages: Sequence[Mapping[str, Any]]) -> Verdict:
        """The verdict on the last message of the user or the assistant. Raises HerdError where there is none."""
        return self.judge_all([messages])[0]

    def judge_all(self, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> list[Verdict]:
        """Of several conversations at the same time, in their order."""
        read = [last_message(messages) for messages in conversations]
        windows = [self._windows(*one) for one in read]
        prompts = [prompt for of in windows for prompt in of]
        scores = self._scores(prompts)
        unsafe = [i for i, score in enumerate(scores) if score >= self.threshold]
        codes = dict(zip(unsafe, self._categories([prompts[i] for i in unsafe]), strict=True))
        verdicts, begin = [], 0
        for (parts, _, _), of in zip(read, windows, strict=True):
            here = range(begin, begin := begin + len(of))
            found = {code for i in here for code in codes.get(i, ())}
            verdicts.append(
                Verdict(
                    unsafe=any(i in codes for i in here),
                    score=max(scores[i] for i in here),
                    categories=tuple(code for code in self.policy.codes if code in found),
                    windows=len(of),
                    notes=self._notes(parts),
                )
            )
        return verdicts

    @property
    def weakness(self) -> str:
        """What to tell who relies on it: that it was measured, and misses most; else empty."""
        recall = self.facts.get("heldout", {}).get("recall", {}).get("share")
        if recall is None or recall >= LEAST_RECALL:
            return ""
        return f"flags {recall:.0%} of unsafe messages (generated, held out)"

    def _windows(self, parts: Sequence[Part], role: Role, before: str) -> list[Prompt]:
        """The prompts that together show the guard all of a message."""
        chars = sum(len(part["text"]) for part in parts if part["type"] == "text")
        pictures = [part for part in parts if part["type"] != "text"]
        if chars > MAX_CHARS:
            raise HerdError(f"the message has {chars:,} characters: {MAX_CHARS:,} are the most that is judged")
        if len(pictures) > MAX_PICTURES:
            raise HerdError(f"the message has {len(pictures)} pictures: {MAX_PICTURES} are the most that is judged")
        whole = self._prompt(parts, role, before)
        if len(whole.token_ids) <= self.context:
            return [whole]
        if before and len(self._prompt([text_part("")], role, before).token_ids) > self.context // 2:
            before = ""  # a long question: the answer is judged by itself, and the question was judged when it came
        room = self.context - ROOM - len(self._prompt([text_part("")], role, before).token_ids)
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        pieces = [[text_part(piece)] for piece in self._pieces(text, room)]
        for picture in pictures:
            piece = [picture, *(pieces[0] if pieces else ())]
            if len(self._prompt(piece, role, before).token_ids) > self.context:
                piece = [picture]
            pieces.append(piece)
        prompts = [self._prompt(piece, role, before) for piece in pieces]
        if (longest := max(len(one.token_ids) for one in prompts)) > self.context:
            raise HerdError(
                f"a part of the message has {longest} tokens with the policy, the guard's context is {self.context}: "
                "give a larger one"
            )
        return prompts

    def _pieces(self, text: str, room: int) -> list[str]:
        """A text in windows of at most `room` tokens, cut between characters."""
        if room < 2 * ROOM:
            raise HerdError(
                f"the guard's context of {self.context} tokens leaves {max(room, 0)} for a message beside the policy: "
                "exclude categories, shorten descriptions, or give a larger context"
            )
        ids = self.model.tokenizer.encode(text)
        size = max(len(text) * room // max(len(ids), 1), 1)
        pieces, begin = [], 0
        while begin < len(text):
            length = size
            while len(self.model.tokenizer.encode(text[begin : begin + length])) > room:
                length = max(length * 3 // 4, 1)
            pieces.append(text[begin : begin + length])
            if begin + length >= len(text):
                break
            begin += max(int(length * (1 - OVERLAP)), 1)
        return pieces

    def _prompt(self, parts: Sequence[Part], role: Role, before: str) -> Prompt:
        return self.model.render(guard_messages(parts, role, self.policy, before, form=self.form))

    def _scores(self, prompts: Sequence[Prompt]) -> list[float]:
        """P(unsafe) of each."""
        # Biased alike, no other token can be drawn; whichever of the two is, its probability is that between them.
        bias = dict.fromkeys(self._first.values(), 100.0)
        params = SamplingParams(temperature=1.0, max_tokens=1, logprobs=0, logit_bias=bias)
        scores = []
        for request in [self._engine.submit(prompt, params, seed=0) for prompt in prompts]:
            drawn = request.result()[0].logprobs[0]
            share = math.exp(drawn.sampled_logprob)
            if drawn.token_id not in bias or not 0 <= share <= 1 + 1e-6:
                raise HerdError("the guard answered neither safe nor unsafe: nothing was judged")
            scores.append(min(share, 1.0) if drawn.token_id == self._first[UNSAFE] else max(1.0 - share, 0.0))
        return scores

    def _categories(self, prompts: Sequence[Prompt]) -> list[tuple[str, ...]]:
        """The codes that unsafe messages violate."""
        codes = self.policy.codes
        one = "|".join(codes)
        form = Structure(kind="regex", source=f"({one})(,({one}))*")
        answer = self.model.tokenizer.encode(f"{UNSAFE}\n")
        most = len(self.model.tokenizer.encode(",".join(codes)))
        params = SamplingParams(temperature=0.0, max_tokens=most, structure=form)
        requests = [
            self._engine.submit(Prompt(token_ids=[*prompt.token_ids, *answer], tiles=prompt.tiles), params)
            for prompt in prompts
        ]
        found = []
        for request in requests:
            named = request.result()[0].text.split(",")
            # What was cut off at the limit is no code.
            found.append(tuple(code for code in codes if code in named) or codes[:1])
        return found

    def _notes(self, parts: Sequence[Part]) -> tuple[str, ...]:
        text = " ".join(part["text"] for part in parts if part["type"] == "text")
        weak = (f"this guard {self.weakness}",) if self.weakness else ()
        if not self.languages or len(text) < DETECTABLE:
            return weak
        language, probability = detect(text)
        if language in self.languages or probability < MIN_IDENTIFIED:
            return weak
        known = ", ".join(sorted(self.languages))
        return (*weak, f"the text seems to be in {language}, the guard was trained on {known}")

    @cached_property
    def parameters(self) -> int:
        return sum(one.numel() for one in self.model.transformer.parameters())
