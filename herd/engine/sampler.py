"""From logits to the next token: pure functions, and the order in which they apply.

1. The structure's mask: what the grammar forbids is -inf.
2. `logit_bias`: added.
3. Repetition penalty over the tokens of prompt and answer: a positive logit is divided by it, another multiplied
   (Keskar et al., arXiv:1909.05858). Frequency and presence penalty over the answer: times the count, and once,
   subtracted (OpenAI's definition).
4. Temperature: the logits are divided by it; 0 takes the likeliest token, and what follows changes nothing.
5. `top_k`, then `top_p` over what that left, then `min_p`: each is a threshold on the logit, so that equal logits stay
   or go together. transformers has the same order, and cuts through equal ones.
6. The draw, by the Gumbel trick: every token has a number E ~ Exp(1), and the least E / probability wins.

E is a function of the seed, the token's place in the answer, and the token: what is drawn depends on nothing else, not
on the batch, a preemption, the device, or how many tokens were drafted. A draft model that draws with the same numbers
drafts what the model will draw (Daliri et al., arXiv:2408.07978), see `speculative`.
Left out: the noise has 24 bits; a token of less than 1e-8 is drawn more seldom than that.
"""

# B requests, V vocabulary, K likeliest tokens

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from herd.config import SamplingConfig
from herd.core.device import send
from herd.core.streams import seed_of
from herd.engine.structure import Structure
from herd.errors import HerdError
from herd.model.pack import CPU

LIKELIEST = 1024
"""Tokens that are sorted for top_p at first; a row whose share they do not fill is sorted whole."""
MAX_TOP_LOGPROBS = 20
"""As OpenAI."""
MAX_BIASES = 1024


@dataclass(frozen=True, kw_only=True)
class SamplingParams(SamplingConfig):
    """How one answer is sampled."""

    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for every time that it is in the answer."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of a token that is in the answer."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of tokens by id."""
    logprobs: int | None = None
    """Return the log-probability of each token of the answer, and of so many likeliest alternatives."""
    prompt_logprobs: bool = False
    """Return the log-probability of each token of the prompt, which is then computed whole: no prefix is reused."""
    structure: Structure | None = None
    """The form that the answer must have."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, holds, wanted in (
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "be in [-2, 2]"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "be in [-2, 2]"),
            ("logprobs", 0 <= (self.logprobs or 0) <= MAX_TOP_LOGPROBS, f"be in 0 to {MAX_TOP_LOGPROBS}"),
        ):
            if not holds:
                raise HerdError(f"{name}={getattr(self, name)} must {wanted}")
        if len(self.logit_bias) > MAX_BIASES:
            raise HerdError(f"logit_bias has {len(self.logit_bias)} tokens: {MAX_BIASES} are the most")
        for token, bias in self.logit_bias.items():
            if token < 0 or not -100 <= bias <= 100:
                raise HerdError(f"logit_bias of {bias} for token {token}: ids are not negative, biases in [-100, 100]")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the next token of one answer depends on beside the logits."""

    params: SamplingParams
    seed: int
    place: int
    """Tokens of the answer so far."""
    counts: Counter[int]
    """How often each is in it."""
    prompt: Tensor
    """The distinct tokens of the prompt."""
    allowed: Tensor | None = None
    """[V], what the structure allows."""


class Draws(NamedTuple):
    """The next token of each answer."""

    tokens: list[int]
    logprobs: list[float | None]
    """Natural log-probability of the token in the distribution that it was drawn from, after all the steps above; 0 at
    temperature 0. Of rows whose params ask for `logprobs`."""


def sample(logits_BV: Float[Tensor, "b v"], rows: Sequence[Row]) -> Draws:
    """Sample a token for each row; fp32 inside, the logits stay as they are."""
    scores_BV, device = adjust_logits(logits_BV.float(), rows), logits_BV.device
    drawn = [i for i, row in enumerate(rows) if row.params.temperature > 0]
    tokens_B = scores_BV.argmax(-1)
    logprobs: list[float | None] = [None if row.params.logprobs is None else 0.0 for row in rows]
    asking: list[int] = []
    if drawn:
        params = [rows[i].params for i in drawn]
        index_D = send(torch.tensor(drawn), device)
        scores_DV = scores_BV if len(drawn) == len(rows) else scores_BV[index_D]
        kept_DV = filter_logits(scores_DV / send(torch.tensor([[one.temperature] for one in params]), device), params)
        noise_DV = gumbel_noise(kept_DV.shape[1], [(rows[i].seed, rows[i].place) for i in drawn], device)
        tokens_D = (kept_DV + noise_DV).argmax(-1)
        tokens_B[index_D] = tokens_D
        if asking := [place for place, one in enumerate(params) if one.logprobs is not None]:
            index_A = send(torch.tensor(asking), device)
            logprob_A = torch.log_softmax(kept_DV[index_A], -1).gather(1, tokens_D[index_A][:, None])[:, 0]
    if not asking:
        return Draws(tokens_B.tolist(), logprobs)
    # Ids are exact in fp32 up to 2^24: tokens and log-probabilities are read together, as reading waits for the device.
    read = torch.cat([tokens_B.to(torch.float32), logprob_A]).tolist()
    for place, logprob in zip(asking, read[len(rows) :], strict=True):
        logprobs[drawn[place]] = logprob
    return Draws([int(token) for token in read[: len(rows)]], logprobs)


def adjust_logits(logits_BV: Float[Tensor, "b v"], rows: Sequence[Row]) -> Float[Tensor, "b v"]:
    """Steps 1 to 3; `logits_BV` itself where no row asks for any."""
    result, device = logits_BV, logits_BV.device
    for i, row in enumerate(rows):
        params = row.params
        penalised = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) != (1, 0, 0)
        if row.allowed is None and not params.logit_bias and not penalised:
            continue
        if result is logits_BV:
            result = logits_BV.clone()
        logits_V = result[i]
        if row.allowed is not None:
            logits_V.masked_fill_(~send(row.allowed, device), float("-inf"))
        if params.logit_bias:
            biased = send(torch.tensor(list(params.logit_bias)), device)
            logits_V[biased] += send(torch.tensor(list(params.logit_bias.values())), device)
        if penalised:
            tokens = torch.tensor(list(row.counts), dtype=torch.int64)
            generated = send(tokens, device)
            if params.repetition_penalty != 1:
                seen = send(torch.cat([row.prompt, tokens]).unique(), device)
                value, penalty = logits_V[seen], params.repetition_penalty
                logits_V[seen] = torch.where(value > 0, value / penalty, value * penalty)
            times = send(torch.tensor(list(row.counts.values()), dtype=torch.float32), device)
            logits_V[generated] -= params.frequency_penalty * times + params.presence_penalty
    return result


def filter_logits(logits_BV: Float[Tensor, "b v"], params: Sequence[SamplingParams]) -> Float[Tensor, "b v"]:
    """Step 5: what is below a row's threshold becomes -inf. `logits_BV` may be overwritten."""
    sorting, device = [i for i, one in enumerate(params) if one.top_k or one.top_p < 1], logits_BV.device
    if not sorting and not any(one.min_p for one in params):
        return logits_BV
    least_B = torch.full((len(params),), float("-inf"), device=device)
    if sorting:
        size = logits_BV.shape[1]
        num_likeliest = min(size, max(LIKELIEST, *(params[i].top_k for i in sorting)))
        rows_RV = logits_BV[send(torch.tensor(sorting), device)]
        # Everything before the draw is thresholds, so the order of equal values is of no account.
        likeliest_RK = rows_RV.topk(num_likeliest).values
        whole_R = rows_RV.logsumexp(-1)
        top_ks = [min(params[i].top_k or size, size) for i in sorting]
        # The one thing that the host has to know: whether the likeliest fill top_p, where top_k asks for more of them.
        unsure = [r for r, top_k in enumerate(top_ks) if top_k > num_likeliest]
        shares = torch.stack([(likeliest_RK[r] - whole_R[r]).exp().sum() for r in unsure]).tolist() if unsure else []
        share_of = dict(zip(unsure, shares, strict=True))
        for r, (i, top_k) in enumerate(zip(sorting, top_ks, strict=True)):
            if top_k <= num_likeliest:
                least_B[i] = top_p_threshold(likeliest_RK[r, :top_k], params[i].top_p)
            elif share_of[r] > params[i].top_p:
                least_B[i] = top_p_threshold(likeliest_RK[r], params[i].top_p, whole_R[r])
            else:
                least_B[i] = top_p_threshold(rows_RV[r].sort(descending=True).values, params[i].top_p)
    ratio_B = send(torch.tensor([one.min_p for one in params]), device)
    least_B = torch.maximum(least_B, logits_BV.amax(-1) + ratio_B.log())
    return logits_BV.masked_fill_(logits_BV < least_B[:, None], float("-inf"))


def top_p_threshold(sorted_K: Float[Tensor, "k"], top_p: float, whole: Tensor | None = None) -> Tensor:
    """The least of these descending logits that top_p keeps; `whole` is the logsumexp, where they are not all."""
    if top_p == 1:
        return sorted_K[-1]
    share_K = (sorted_K - (sorted_K.logsumexp(0) if whole is None else whole)).exp()
    # A token stays as long as those before it have not filled top_p; the first always stays.
    kept = (share_K.cumsum(0) - share_K < top_p).sum()
    return sorted_K.gather(0, (kept - 1).clamp(min=0)[None])[0]


def gumbel_noise(size: int, places: Sequence[tuple[int, int]], device: torch.device = CPU) -> Float[Tensor, "b v"]:
    """-ln E of each token for each (seed, place in the answer), E ~ Exp(1). Drawn on the host: the same on any
    device."""
    noise_BV = torch.empty(len(places), size)
    generator = torch.Generator()
    for noise_V, (seed, place) in zip(noise_BV, places, strict=True):
        generator.manual_seed(seed_of(seed, place))
        noise_V.uniform_(generator=generator)
    # In place: [32, 202048] is 26 MB.
    return send(noise_BV, device).log_().neg_().log_().neg_()


def log_probabilities(logits_V: Float[Tensor, "v"], token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """Natural log-probability of `token`, and the `count` likeliest tokens with theirs, by the model itself:
    before any of the steps above."""
    logs_V = torch.log_softmax(logits_V.float(), -1)
    values, index = logs_V.topk(min(count, len(logs_V)))
    logprob, *read = torch.cat([logs_V[token : token + 1], values, index.to(torch.float32)]).tolist()
    half = len(read) // 2
    return logprob, list(zip(map(int, read[half:]), read[:half], strict=True))


def choice_seeds(seed: int, count: int) -> list[int]:
    """The seeds of several answers to one request: the first is the request's own."""
    return [seed, *(seed_of(seed, "choice", i) for i in range(1, count))]
