"""The loss of online reinforcement learning: a policy gradient on drawn tokens, corrected for who drew them."""

# N tokens, S documents, R drawn tokens of a chunk, M tokens that are computed, J = mixture layers * k, k = top_k

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from herd.config.rl_loss import PolicyLossConfig
from herd.core.batch import Batch
from herd.core.device import send, sum_dtype
from herd.core.metrics import Mean, Number
from herd.errors import HerdError
from herd.model.parallel import ALONE, Parallel
from herd.model.transformer import Transformer
from herd.rl.corrections import CORRECTIONS, Corrected, correct, ratio
from herd.rl.routes import route_flips
from herd.train.losses import policy_cross_entropy, token_logprobs
from herd.train.sharing import share_prompts

OLDEST = 3
"""Ages from this on are reported as one."""


@dataclass(frozen=True, kw_only=True)
class RolloutBatch(Batch):
    """Answers of a step, a document each, with what is known of the tokens that were drawn.

    Weights are 1 where the target was drawn, else 0: `total_weight` is the number of drawn tokens of the whole step,
    and the loss a sum over the step divided by that, however it is cut. What the fields say of other places is not
    read.
    """

    advantages_N: Tensor
    """float32, of the target."""
    logprobs_N: Tensor
    """float32, log-probability of the target in the distribution that it was drawn from."""
    versions_N: Tensor
    """int64, of the weights that drew the target."""
    current_N: Tensor
    """float32, log-probability of the target by the engine at the weights that are trained; NaN where not read."""
    prompts_N: Tensor | None = None
    """int64, of the tokens of a prompt the number of its group, -1 elsewhere: what neighbours have in common."""
    reference_N: Tensor | None = None
    """float32, log-probability of the target by the reference model; NaN where not read."""
    routes_NJ: Tensor | None = None
    """uint8, the experts of each token in the engine (`Rollout.routes`), which the trainer then uses; None: its router
    chooses."""
    newest_version: int | None = None
    """The newest of the whole step's versions, from which ages are counted; by default that of `versions_N`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.newest_version is None:  # a batch that was not cut from another
            drawn = self.versions_N[self.weights_N != 0]
            object.__setattr__(self, "newest_version", int(drawn.max()) if len(drawn) else 0)


def policy_loss(
    config: PolicyLossConfig, parallel: Parallel = ALONE
) -> Callable[[Transformer, Batch], tuple[Tensor, dict[str, Number | Mean]]]:
    """The loss function of a RolloutBatch: -sum_t f_t log pi_t / N over the N drawn tokens of the step, with constants

        f_t = c_t A'_t - drift_penalty * log(pi_t / mu_t),
        A'_t = A_t - reference_kl * log(pi_t / ref_t)

    and the correction c. Its value is no objective, its gradient is what counts.

    The ratio's log pi_t is the engine's where the batch has it, so that it is exactly 1 on policy, else the trainer's.
    A correction by sequences needs log pi of whole answers first: where the engine did not read them, one pass over the
    unembedding more, without gradient.

    The second term is the gradient of (log ratio)^2 / 2. The KL divergence is in the advantage, where its gradient
    E[c log(pi / ref) grad log pi] is that of KL(pi | ref) at each prefix without bias, as far as c is rho; the gradient
    of the usual estimator r - 1 - log r with r = ref / pi is, on policy, that of KL(ref | pi) instead.

    Metrics are means over the drawn tokens: `ratio` and `ratio_squared` (see `effective_share`), `k3` = ratio - 1 - log
    ratio, an estimate of KL(mu | pi), `clipped` and `masked` shares, |log ratio| by age in versions, `entropy`
    estimated by -log pi of the drawn tokens, `engine_gap` between trainer and engine where that read, `reference_k3`,
    an estimate of KL(pi | ref), and with routes those of `route_flips`.

    Raises HerdError for a correction by sequences on ranks that cut them.
    """
    by_sequence = CORRECTIONS[config.correction.name].by_sequence
    for axis in ("context", "tensor"):
        if by_sequence and parallel.mesh.sizes[axis] > 1:
            raise HerdError(
                f"correction={config.correction.name} needs whole answers, which {axis} ranks cut: set "
                f"parallel.{axis}=1, or take a correction by tokens such as tis"
            )

    def loss_fn(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Number | Mean]]:
        assert isinstance(batch, RolloutBatch)
        device = model.embedding.weight.device
        sharing = (
            None if parallel.is_distributed else share_prompts(batch.prompts_N, batch.starts_S, device, batch.routes_NJ)
        )
        hidden_ND = model(
            batch.tokens_N,
            positions_N=batch.positions_N,
            starts_S=batch.starts_S,
            images=batch.images,
            sharing=sharing,
            routes_NJ=batch.routes_NJ,
        )
        flips: dict[str, Number | Mean] = {}
        if batch.routes_NJ is not None:
            routes_MJ = batch.routes_NJ if sharing is None else batch.routes_NJ[sharing.pick_M]
            flips = route_flips(routes_MJ, model.routers_choice(), model.config.moe.top_k)
        unembedding_VD = model.unembedding.weight
        numbers = torch.nonzero(batch.weights_N)[:, 0]
        sequences_N = torch.bucketize(torch.arange(len(batch.tokens_N)), batch.starts_S[1:], right=True)
        drawn_N, sequences_N = send(numbers, device), send(sequences_N, device)
        terms: list[_Terms] = []
        ready_N: Tensor | None = None
        if by_sequence:
            own_R = batch.current_N[drawn_N]
            if bool(own_R.isnan().any()):
                with torch.no_grad():
                    own_R = token_logprobs(hidden_ND[drawn_N], unembedding_VD, batch.targets_N[drawn_N])
            terms.append(_terms(config, batch, drawn_N, own_R, sequences_N))
            ready_N = own_R.new_zeros(len(batch.tokens_N)).index_copy(0, drawn_N, terms[0].factors_R)

        def factors(rows_R: Tensor, nll_R: Tensor) -> Tensor:
            if ready_N is not None:
                return ready_N[rows_R]
            terms.append(_terms(config, batch, rows_R, -nll_R, sequences_N))
            return terms[-1].factors_R

        loss, nll_N = policy_cross_entropy(hidden_ND, unembedding_VD, batch.targets_N, batch.shares_N, factors)
        return loss, {**_metrics(batch, drawn_N, nll_N[drawn_N], terms), **flips}

    return loss_fn


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """What is known of some drawn tokens once their log-probability is."""

    factors_R: Tensor
    """f."""
    log_ratio_R: Tensor
    corrected: Corrected


def _terms(config: PolicyLossConfig, batch: RolloutBatch, rows_R: Tensor, own_R: Tensor, sequences_N: Tensor) -> _Terms:
    """Of the tokens at `rows_R` with the trainer's log-probabilities."""
    read_R = batch.current_N[rows_R].to(own_R.dtype)
    now_R = torch.where(read_R.isnan(), own_R, read_R)
    drawn_R = batch.logprobs_N[rows_R].to(own_R.dtype)
    advantages_R = batch.advantages_N[rows_R].to(own_R.dtype)
    if config.reference_kl:
        assert batch.reference_N is not None
        reference_R = batch.reference_N[rows_R].to(own_R.dtype)
        advantages_R = advantages_R - config.reference_kl * (now_R - reference_R).nan_to_num(nan=0.0)
    corrected = correct(config.correction, now_R, drawn_R, advantages_R, sequences_N[rows_R])
    log_ratio_R = now_R - drawn_R
    factors_R = corrected.factors_R * advantages_R - config.drift_penalty * log_ratio_R
    return _Terms(factors_R=factors_R, log_ratio_R=log_ratio_R, corrected=corrected)


def _metrics(batch: RolloutBatch, rows_R: Tensor, nll_R: Tensor, terms: list[_Terms]) -> dict[str, Number | Mean]:
    """Those of `policy_loss`; the same names for every part of a step."""
    wide, empty_R = sum_dtype(nll_R.device), nll_R[:0]
    log_R = torch.cat([empty_R, *(one.log_ratio_R for one in terms)]).to(wide)
    clipped_R = torch.cat([empty_R, *(one.corrected.clipped_R for one in terms)])
    masked_R = torch.cat([empty_R, *(one.corrected.masked_R for one in terms)])
    rho_R = ratio(log_R)
    gap_R = (batch.current_N[rows_R] + nll_R).abs()
    found: dict[str, Number | Mean] = {
        "ratio": _mean(rho_R),
        "ratio_squared": _mean(rho_R.square()),
        "k3": _mean(rho_R - 1 - log_R),
        "clipped": _mean(clipped_R),
        "masked": _mean(masked_R),
        "entropy": _mean(nll_R),
        "engine_gap": _mean(gap_R[~gap_R.isnan()]),
    }
    assert batch.newest_version is not None
    ages_R = (batch.newest_version - batch.versions_N[rows_R]).clamp(0, OLDEST)
    for age in range(OLDEST + 1):
        found[f"drift_age_{age}"] = _mean(log_R[ages_R == age].abs())
    if batch.reference_N is not None:
        away_R = (batch.reference_N[rows_R] + nll_R).to(wide)
        away_R = away_R[~away_R.isnan()]
        found["reference_k3"] = _mean(ratio(away_R) - 1 - away_R)
    return found


def _mean(values_R: Tensor) -> Mean:
    return Mean(values_R.sum(dtype=sum_dtype(values_R.device)), len(values_R))


def effective_share(ratio: float, ratio_squared: float) -> float:
    """The effective sample size of importance weights as a share of their number, (sum rho)^2 / (N sum rho^2), by the
    metrics of a step."""
    return ratio**2 / ratio_squared if ratio_squared else 0.0
