"""Speculative decoding: drafted tokens that one forward of the model then checks together.

The check is in `answer.advance`: at each place the model's own token is sampled, and the draft is accepted while it is
the same. An answer is thus token for token what it would be without drafts, at any temperature; only its speed changes.
Drafts come from the grammar of an answer, where that leaves no choice; from the answer's own past (`NGrams`:
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

MAX_NGRAM, MIN_NGRAM = 4, 2
"""Tokens in a row that are looked up in the past."""
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


def draft_tokens(drafter: Drafter, answers: Sequence[Answer], counts: Sequence[int]) -> list[list[int]]:
    """The drafts for a step: the tokens that a grammar forces, else the drafter's."""
    forced = [_forced_tokens(answer, count) for answer, count in zip(answers, counts, strict=True)]
    drafted = drafter.draft(answers, [0 if sure else count for sure, count in zip(forced, counts, strict=True)])
    return [sure or draft for sure, draft in zip(forced, drafted, strict=True)]


def _forced_tokens(answer: Answer, count: int) -> list[int]:
    if answer.grammar is None or not count:
        return []
    try:
        return answer.grammar.forced_tokens(count)
    except Exception:  # the same error ends this one answer when its next token is drawn
        return []


class NGrams:
    """Drafts what followed the last few tokens where they occurred before, in the prompt or the answer."""

    def __init__(self) -> None:
        self._indices: dict[Answer, _NGramIndex] = {}

    def draft(self, answers: Sequence[Answer], counts: Sequence[int]) -> list[list[int]]:
        self._indices = {answer: self._indices.get(answer) or _NGramIndex(answer) for answer in answers}
        return [
            self._indices[answer].draft(count) if count else [] for answer, count in zip(answers, counts, strict=True)
        ]


class _NGramIndex:
    """Where each n-gram of one prompt and answer occurred last."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}

    def draft(self, count: int) -> list[int]:
        tokens = self._tokens
        for token in _tokens_from(self._answer, len(tokens)):
            # A row is entered when it has a successor, so that the end of the past does not find itself.
            for length in range(MIN_NGRAM, min(MAX_NGRAM, len(tokens)) + 1):
                self._places[tuple(tokens[-length:])] = len(tokens)
            tokens.append(token)
        for length in range(MAX_NGRAM, MIN_NGRAM - 1, -1):
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
        self._states: dict[Answer, _DraftState] = {}

    @torch.inference_mode()
    def draft(self, answers: Sequence[Answer], counts: Sequence[int]) -> list[list[int]]:
        for answer in self._states.keys() - set(answers):
            self._free.append(self._states.pop(answer).slot)
        drafts: dict[Answer, list[int]] = {answer: [] for answer in answers}
        wanted = dict(zip(answers, counts, strict=True))
        going = {
            answer: self._tokens_to_read(answer) for answer in answers if wanted[answer] > 0 and self._admit(answer)
        }
        while going:
            logits_SV = self._read(going)
            # A request with more to read than one forward takes has no drafts this time.
            ready = [i for i, answer in enumerate(going) if len(self._states[answer].tokens) >= _length(answer)]
            drawn = [list(going)[i] for i in ready]
            rows = [answer.row(ahead=drafts[answer]) for answer in drawn]
            going = {}
            logits_RV = logits_SV[send(torch.tensor(ready, dtype=torch.int64), logits_SV.device)]
            for answer, token in zip(drawn, sample(logits_RV, rows).tokens if drawn else [], strict=True):
                drafts[answer].append(token)
                if len(drafts[answer]) < wanted[answer] and self._can_read(answer):
                    going[answer] = [token]
        return list(drafts.values())

    def _admit(self, answer: Answer) -> bool:
        """Whether the answer has a slot, or gets one now."""
        if answer not in self._states and self._free and self._model.config.special.patch not in answer.prompt:
            self._states[answer] = _DraftState(slot=self._free.pop())
        return answer in self._states and _length(answer) < self._max_model_len

    def _tokens_to_read(self, answer: Answer) -> list[int]:
        """The tokens to compute next: those after the last one whose keys and values are right."""
        state, length = self._states[answer], _length(answer)
        actual = _tokens_from(answer, state.known)
        pairs = zip(state.tokens[state.known :], actual, strict=False)
        right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        keep = min(state.known + right, len(state.tokens), length - 1)
        del state.tokens[keep:]
        state.known = length
        begin, end = chunk_pieces(keep, length, self._model.config.chunk_size, READ_TOKENS)[0]
        return _tokens_from(answer, begin)[: end - begin]

    def _can_read(self, answer: Answer) -> bool:
        """Whether a draft may be computed as well. In local layers the next chunk replaces this one, which is
        needed again where a draft is rejected."""
        at, chunk = len(self._states[answer].tokens), self._model.config.chunk_size
        return at // chunk == _length(answer) // chunk and at < self._max_model_len

    def _read(self, news: Mapping[Answer, list[int]]) -> Tensor:
        """Logits behind the last token of each."""
        states = [self._states[answer] for answer in news]
        pack = pack_sequences(
            list(news.values()),
            num_cached=[len(state.tokens) for state in states],
            device=self._model.device,
        )
        view = self._cache.view(pack, [state.slot for state in states])
        hidden_ND = self._model.transformer.forward_packed(pack, cache=view)
        for state, tokens in zip(states, news.values(), strict=True):
            state.tokens += tokens
        return self._model.transformer.unembed(hidden_ND[pack.last_S]).float()


@dataclass(kw_only=True)
class _DraftState:
    """What the draft model has computed of one answer."""

    slot: int
    tokens: list[int] = field(default_factory=list)
    """Prompt, answer, and drafts that may be wrong: those whose keys and values are in the cache."""
    known: int = 0
    """How many of them were no drafts."""


def _length(answer: Answer) -> int:
    return len(answer.prompt) + len(answer.tokens)


def _tokens_from(answer: Answer, begin: int) -> list[int]:
    """Prompt and answer from token `begin` on."""
    inside = begin - len(answer.prompt)
    return answer.tokens[inside:] if inside >= 0 else [*answer.prompt[begin:], *answer.tokens]
