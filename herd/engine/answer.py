"""One answer while it is generated: its sampled tokens, its text without stop strings, and why it ends.

The engine gives logits and passes the pieces on; all state of an answer between two forwards is here. It covers
speculative decoding too: where the engine has logits after drafted tokens, `advance` samples at each place in turn and
goes on while the sampled token is the drafted one, so that the answer is the same as without drafts.
"""

# N rows of logits, V vocabulary

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from herd.core.device import send
from herd.data.tokens.text_stream import TextStream
from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.filters import StopFilter
from herd.engine.sampler import Row, SamplingParams, log_probabilities, sample
from herd.engine.structure import GrammarState
from herd.errors import HerdError


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """How likely a token of the answer was; natural logarithms."""

    token_id: int
    logprob: float
    """By the model itself, before anything that sampling adds."""
    sampled_logprob: float
    """In the distribution that it was drawn from, after temperature, filters and the structure's mask."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at its place, as many as were asked for."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """News of an answer: the text since the last piece, its tokens, and at the end why it ended."""

    text: str
    token_ids: list[int]
    finish_reason: str | None
    """None while running; "stop" at an end token or a stop string, "length" at max_tokens or the context's end, "abort"
    where it was cancelled; "error" where the request is at fault or the engine was closed, "fault" where the engine
    failed, with the reason as the text."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of `token_ids`, and of the end token; where they were asked for."""
    index: int = 0
    """Which answer of the request."""
    end_token: int | None = None
    """The token that ended the answer, which is not among `token_ids`."""
    version: int = 0
    """Of the weights that these tokens were drawn from; see `Engine.update_weights`."""
    routes: np.ndarray | None = field(default=None, compare=False)
    """With the last piece, from an engine that records them: the experts of the tokens of prompt and answer but the
    last one, which was not computed; uint8 [tokens, mixture layers * top_k]."""
    prompt_logprobs: tuple[float, ...] = ()
    """With the first piece, where asked for: of every token of the prompt but the first."""
    prompt_top: tuple[tuple[tuple[int, float], ...], ...] = ()
    """Beside `prompt_logprobs`, where `logprobs` of the params is not 0: the likeliest tokens at each place."""
    stop_string: str = ""
    """The one that ended the answer."""


class Answer:
    """The answer to one request. Ends after `room` tokens at the latest."""

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt: Sequence[int],
        tokenizer: Tokenizer,
        end_tokens: Sequence[int],
        room: int,
        seed: int,
        grammar: GrammarState | None = None,
    ) -> None:
        """`grammar` is the initial state of the structure in `params`; `seed` replaces theirs."""
        if beyond := [token for token in params.logit_bias if token >= tokenizer.vocab_size]:
            raise HerdError(f"logit_bias: there is no token {beyond[0]}, the tokenizer has {tokenizer.vocab_size}")
        self.params, self.grammar, self.prompt = params, grammar, prompt
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self.num_drafted = self.num_accepted = self.last_accepted = 0
        """Tokens drafted, accepted, and accepted in the last step."""
        self.seed = seed
        self._counts: Counter[int] = Counter()
        self._distinct = torch.tensor(sorted(set(prompt)), dtype=torch.int64)
        self._end_tokens, self._limit = frozenset(end_tokens), min(room, params.max_tokens)
        self._text, self._stop = TextStream(tokenizer), StopFilter(params.stop)

    @property
    def room(self) -> int:
        """Tokens that it may still get."""
        return self._limit - len(self.tokens)

    def row(self, *, ahead: Sequence[int] | None = None) -> Row:
        """What the next token depends on beside the logits. Raises HerdError where the grammar allows none.

        For a draft, `ahead` are the drafted tokens before it, and the grammar is left out: its state is before them.
        """
        return Row(
            params=self.params,
            seed=self.seed,
            place=len(self.tokens) + len(ahead or ()),
            counts=self._counts + Counter(ahead) if ahead else self._counts,
            prompt=self._distinct,
            allowed=self.grammar.allowed_tokens() if self.grammar and ahead is None else None,
        )

    def push(self, token: int, logits_V: Float[Tensor, "v"], sampled_logprob: float | None) -> Piece:
        """Append `token`, drawn from `logits_V`."""
        ended = token in self._end_tokens
        if ended:
            self.finish_reason, text = "stop", ""
        else:
            self.tokens.append(token)
            self._counts[token] += 1
            if self.grammar:
                self.grammar.push(token)
            text = self._stop.push(self._text.push(token))
            if self._stop.verdict:
                self.finish_reason = "stop"
            elif self.room <= 0:
                self.finish_reason = "length"
        if self.finish_reason:
            text += self._stop.push(self._text.finish())
            if self._stop.verdict:
                self.finish_reason = "stop"
            text += self._stop.finish()
        logprobs: tuple[TokenLogprob, ...] = ()
        if self.params.logprobs is not None:
            assert sampled_logprob is not None
            logprob, top = log_probabilities(logits_V, token, self.params.logprobs)
            logprobs = (TokenLogprob(token_id=token, logprob=logprob, sampled_logprob=sampled_logprob, top=tuple(top)),)
        return Piece(
            text=text,
            token_ids=[] if ended else [token],
            finish_reason=self.finish_reason,
            logprobs=logprobs,
            end_token=token if ended else None,
            stop_string=self._stop.found,
        )


def advance(
    answers: Sequence[Answer], logits_NV: Float[Tensor, "n v"], drafts: Sequence[Sequence[int]] = ()
) -> list[Piece]:
    """Sample the next tokens of each answer.

    The rows of an answer are adjacent: the logits after its last token, then after each of its drafted tokens. An
    answer grows by at least one token, and by at most one more than were drafted; its `tokens` are then up to date, and
    a cache must drop what was computed beyond them. An error in one answer ends that answer alone.
    """
    drafts = drafts or [()] * len(answers)
    first_rows = list(accumulate((1 + len(draft) for draft in drafts), initial=0))
    assert first_rows.pop() == len(logits_NV), f"{len(logits_NV)} rows of logits for drafts of {list(map(len, drafts))}"
    pieces: list[list[Piece]] = [[] for _ in answers]

    def fail(i: int, error: Exception) -> None:
        pieces[i] = [error_piece(error)]
        answers[i].finish_reason = pieces[i][0].finish_reason

    going, depth = list(range(len(answers))), 0
    while going:
        rows: dict[int, Row] = {}
        for i in going:
            try:
                rows[i] = answers[i].row()
            except Exception as error:
                fail(i, error)
        if not rows:
            break
        logits_BV = logits_NV
        if len(rows) < len(logits_NV):
            logits_BV = logits_NV[send(torch.tensor([first_rows[i] + depth for i in rows]), logits_NV.device)]
        going = []
        for i, logits_V, draw in zip(rows, logits_BV, sample_each(logits_BV, list(rows.values())), strict=True):
            if isinstance(draw, Exception):
                fail(i, draw)
                continue
            token, logprob = draw
            try:
                pieces[i].append(answers[i].push(token, logits_V, logprob))
            except Exception as error:
                fail(i, error)
                continue
            if depth < len(drafts[i]) and drafts[i][depth] == token and answers[i].finish_reason is None:
                going.append(i)
        depth += 1
    for answer, draft, parts in zip(answers, drafts, pieces, strict=True):
        answer.num_drafted += len(draft)
        answer.last_accepted = len(parts) - 1
        answer.num_accepted += answer.last_accepted
    return [join_pieces(parts) for parts in pieces]


def sample_each(logits_BV: Float[Tensor, "b v"], rows: Sequence[Row]) -> list[tuple[int, float | None] | Exception]:
    """The draw of each row, or why it failed: rows are tried one by one only after they failed together."""
    try:
        draws = sample(logits_BV, rows)
        return list(zip(draws.tokens, draws.logprobs, strict=True))
    except Exception as error:
        if len(rows) == 1:
            return [error]
        return [sample_each(logits_V[None], [row])[0] for logits_V, row in zip(logits_BV, rows, strict=True)]


def error_piece(error: Exception) -> Piece:
    """The last piece of an answer that cannot go on: the request's mistake where it is a HerdError, else a fault."""
    if isinstance(error, HerdError):
        return Piece(text=str(error), token_ids=[], finish_reason="error")
    text = f"generation failed: {type(error).__name__}: {error}"
    return Piece(text=text, token_ids=[], finish_reason="fault")


def join_pieces(pieces: Sequence[Piece]) -> Piece:
    """Pieces that follow each other, as one."""
    if len(pieces) == 1:
        return pieces[0]
    return Piece(
        text="".join(piece.text for piece in pieces),
        token_ids=[token for piece in pieces for token in piece.token_ids],
        finish_reason=pieces[-1].finish_reason,
        logprobs=tuple(one for piece in pieces for one in piece.logprobs),
        end_token=pieces[-1].end_token,
        stop_string=pieces[-1].stop_string,
    )
