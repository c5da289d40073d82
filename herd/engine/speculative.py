"""Speculative decoding: drafted tokens that one forward of the model then checks together.

The check is in `answer.advance`: at each place the model's own token is drawn, and the draft holds while it is the
same. An answer is thus what it would be without drafts, to the token, at every temperature; only its speed changes.
Drafts come from the form that an answer must have, where that leaves no choice; from the answer's own past (`NGrams`:
Saxena, "Prompt lookup decoding", 2023); or from a small model of the same tokenizer (`DraftModel`), which draws with
the same Gumbel noise: where the two distributions are D apart (total variation), a draft holds with probability
(1 - D) / (1 + D) at least (Daliri et al., arXiv:2408.07978). Rejection sampling (Leviathan et al., arXiv:2211.17192)
reaches 1 - D, but what a seed answers would depend on where each draft began, which a scheduler decides; for a draft
without noise of its own (n-grams, temperature 0) the two are the same rule.
Left out: trees of drafts; pictures in the draft model, which drafts nothing for their requests.
"""

# N tokens of the pack, D width, S sequences, V vocabulary

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Protocol

import torch
from torch import Tensor

from herd.core.device import send
from herd.engine.answer import Answer
from herd.engine.model import LoadedModel
from herd.engine.sampler import sample
from herd.errors import HerdError
from herd.model.cache import Slots, chunk_pieces
from herd.model.pack import pack_sequences

LONGEST, SHORTEST = 4, 2
"""Tokens in a row that are looked for in the past."""
READ_TOKENS = 2048
"""Tokens that the draft model reads of one request before the others go on."""


class Drafter(Protocol):
    """Source of drafts."""

    def draft(self, answers: Sequence[Answer], counts: Sequence[int]) -> list[list[int]]:
        """At most `counts[i]` tokens that may come next in `answers[i]`; any other answer is forgotten."""


def num_drafts(answer: Answer, most: int, *, chunk_size: int) -> int:
    """How many tokens are worth drafting: two more than were accepted the last time, at most `most`.

    What a forward reads of one request is in one chunk: here the last token and the drafts behind it. The token
    behind the last draft is drawn too, so that one less than there is room for is drafted.
    """
    last = _length(answer) - 1
    return max(0, min(most, answer.last_accepted + 2, chunk_size - 1 - last % chunk_size, answer.room - 1))


def drafts(drafter: Drafter, answers: Sequence[Answer], counts: Sequence[int]) -> list[list[int]]:
    """The drafts for a step: what a form leaves no choice about, else the drafter's."""
    forced = [_forced(answer, count) for answer, count in zip(answers, counts, strict=True)]
    drafted = drafter.draft(answers, [0 if sure else count for sure, count in zip(forced, counts, strict=True)])
    return [sure or draft for sure, draft in zip(forced, drafted, strict=True)]


def _forced(answer: Answer, count: int) -> list[int]:
    if answer.progress is None or not count:
        return []
    try:
        return answer.progress.forced(count)
    except Exception:  # the same error ends this one answer when its next token is drawn
        return []


class NGrams:
    """What followed the last few tokens when they stood there before, in the prompt or the answer."""

    def __init__(self) -> None:
        self._pasts: dict[Answer, _Past] = {}

    def draft(self, answers: Sequence[Answer], counts: Sequence[int]) -> list[list[int]]:
        self._pasts = {answer: self._pasts.get(answer) or _Past(answer) for answer in answers}
        return [
            self._pasts[answer].draft(count) if count else [] for answer, count in zip(answers, counts, strict=True)
        ]


class _Past:
    """Where each row of a few tokens stood last."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}

    def draft(self, count: int) -> list[int]:
        tokens = self._tokens
        for token in _behind(self._answer, len(tokens)):
            # A row is entered when it has a successor, so that the end of the past does not find itself.
            for length in range(SHORTEST, min(LONGEST, len(tokens)) + 1):
                self._places[tuple(tokens[-length:])] = len(tokens)
            tokens.append(token)
        for length in range(LONGEST, SHORTEST - 1, -1):
            place = self._places.get(tuple(tokens[-length:]))
            if place is not None:
                # It may run into itself: then what follows goes on in circles, as a repetition does.
                found = tokens[place : place + count]
                while found and len(found) < count:
                    found += found[: count - len(found)]
                return found
        return []


class DraftModel:
    """A smaller model's drafts, over its own cache for `max_num_seqs` requests of `max_model_len` tokens at most."""

    def __init__(self, model: LoadedModel, target: LoadedModel, *, max_num_seqs: int, max_model_len: int) -> None:
        ours, theirs = model.tokenizer, target.tokenizer
        if ours.vocabulary != theirs.vocabulary or model.config.vocab_size != target.config.vocab_size:
            raise HerdError(
                f"the draft model has another tokenizer, of {ours.vocab_size} tokens (the model: {theirs.vocab_size}): "
                "take one that was trained with the same"
            )
        self._model = model
        weight = model.transformer.embedding.weight  # the unembedding may be packed
        self._cache = Slots(
            model.config, num_slots=max_num_seqs, capacity=max_model_len, dtype=weight.dtype, device=weight.device
        )
        self._free, self._max_model_len = list(range(max_num_seqs)), max_model_len
        self._readings: dict[Answer, _Reading] = {}

    @torch.inference_mode()
    def draft(self, answers: Sequence[Answer], counts: Sequence[int]) -> list[list[int]]:
        for answer in self._readings.keys() - set(answers):
            self._free.append(self._readings.pop(answer).slot)
        drafts: dict[Answer, list[int]] = {answer: [] for answer in answers}
        wanted = dict(zip(answers, counts, strict=True))
        going = {answer: self._unread(answer) for answer in answers if wanted[answer] > 0 and self._admit(answer)}
        while going:
            logits_SV = self._read(going)
            # A request with more to read than one forward takes has no drafts this time.
            ready = [i for i, answer in enumerate(going) if len(self._readings[answer].tokens) >= _length(answer)]
            drawn = [list(going)[i] for i in ready]
            rows = [answer.row(ahead=drafts[answer]) for answer in drawn]
            going = {}
            logits_RV = logits_SV[send(torch.tensor(ready, dtype=torch.int64), logits_SV.device)]
            for answer, token in zip(drawn, sample(logits_RV, rows).tokens if drawn else [], strict=True):
                drafts[answer].append(token)
                if len(drafts[answer]) < wanted[answer] and self._may_read(answer):
                    going[answer] = [token]
        return list(drafts.values())

    def _admit(self, answer: Answer) -> bool:
        """Whether the answer has a slot, or gets one now."""
        if answer not in self._readings and self._free and self._model.config.special.patch not in answer.prompt:
            self._readings[answer] = _Reading(slot=self._free.pop())
        return answer in self._readings and _length(answer) < self._max_model_len

    def _unread(self, answer: Answer) -> list[int]:
        """What is to be read next: the tokens behind those whose keys and values hold."""
        reading, length = self._readings[answer], _length(answer)
        said = _behind(answer, reading.known)
        pairs = zip(reading.tokens[reading.known :], said, strict=False)
        right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        keep = min(reading.known + right, len(reading.tokens), length - 1)
        del reading.tokens[keep:]
        reading.known = length
        begin, end = chunk_pieces(keep, length, self._model.config.chunk_size, READ_TOKENS)[0]
        return _behind(answer, begin)[: end - begin]

    def _may_read(self, answer: Answer) -> bool:
        """Whether a draft may be read as well. In local layers the next chunk replaces this one, which is
        needed again where a draft is rejected."""
        at, chunk = len(self._readings[answer].tokens), self._model.config.chunk_size
        return at // chunk == _length(answer) // chunk and at < self._max_model_len

    def _read(self, news: Mapping[Answer, list[int]]) -> Tensor:
        """Logits behind the last token of each."""
        readings = [self._readings[answer] for answer in news]
        pack = pack_sequences(
            list(news.values()),
            num_cached=[len(reading.tokens) for reading in readings],
            device=self._model.device,
        )
        view = self._cache.at(pack, [reading.slot for reading in readings])
        hidden_ND = self._model.transformer.forward_packed(pack, cache=view)
        for reading, tokens in zip(readings, news.values(), strict=True):
            reading.tokens += tokens
        return self._model.transformer.unembed(hidden_ND[pack.last_S]).float()


@dataclass(kw_only=True)
class _Reading:
    """What the draft model has read of one answer."""

    slot: int
    tokens: list[int] = field(default_factory=list)
    """Prompt, answer, and drafts that may be wrong: those whose keys and values are in the cache."""
    known: int = 0
    """So many of them were no drafts."""


def _length(answer: Answer) -> int:
    return len(answer.prompt) + len(answer.tokens)


def _behind(answer: Answer, begin: int) -> list[int]:
    """Prompt and answer from a place on."""
    inside = begin - len(answer.prompt)
    return answer.tokens[inside:] if inside >= 0 else [*answer.prompt[begin:], *answer.tokens]
