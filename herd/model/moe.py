"""Dropless top-k routing by sorting tokens. No capacity limit, no expert computed for a token that it does not own.

Llama 4: the sigmoid of the chosen router logit scales the expert's *input*; the shared expert sees every token; the
layer's output is shared + routed.

Inference on a CPU has a second implementation, routing included: herd/native/forward.cpp, called by fused.py. A change
here must be made there too; agreement.py compares the two whenever an engine is started on a model.
"""

# N tokens, D width, E experts, F hidden width, k = top_k, R = N * k routed rows

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from herd import native
from herd.config import MoEConfig
from herd.core.device import has_fp64
from herd.model.gather import Gather
from herd.model.precision import Linear, batch_invariant, grouped_product


class FeedForward(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`, gate and up in one matrix."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(dim, 2 * hidden)
        self.down = Linear(hidden, dim)

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up(x_ND)))


def swiglu(gate_up: Tensor) -> Tensor:
    if native.why_not(gate_up, native.TRAINING) is None:
        return native.swiglu(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


OBSERVED = ("logits_NE", "load_E", "count_E", "expert_Nk")
"""What a forward in training leaves to be read."""
UNKNOWN = 255
"""In recorded routes, in place of an expert: the router chooses."""


class MoE(nn.Module):
    """Router, routed experts and the shared expert of one layer.

    What training reads and sets (see herd.train.balance): `logits_NE` and `load_E`, each expert's share of the routed
    rows, of the last forward; `count_E`, the rows of each expert since it was last cleared; `bias_E`, added to the
    logits where experts are chosen and nowhere else. A finished model has no bias. `expert_Nk`: the router's choice in
    the last forward, whether it was followed or not.
    """

    def __init__(self, dim: int, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        experts, hidden = config.num_experts, config.ffn_dim
        self.router = nn.Linear(dim, experts, bias=False)
        self.gate_up_EDF = nn.Parameter(torch.empty(experts, dim, 2 * hidden))
        self.down_EFD = nn.Parameter(torch.empty(experts, hidden, dim))
        self.shared = FeedForward(dim, hidden)
        self.logits_NE: Tensor | None = None
        self.load_E: Tensor | None = None
        self.count_E: Tensor | None = None
        self.bias_E: Tensor | None = None
        self.expert_Nk: Tensor | None = None

    def forward(self, x_ND: Tensor, routes_Nk: Tensor | None = None) -> Tensor:
        """`routes_Nk`, uint8: the experts to use in place of the router's choice, UNKNOWN where that holds."""
        top_k = self.config.top_k
        # fp32: near ties pick another expert in bf16.
        logits_NE = batch_invariant(partial(F.linear, weight=self.router.weight.float()), x_ND.float())
        chosen_Nk, expert_Nk = torch.topk(logits_NE if self.bias_E is None else logits_NE + self.bias_E, top_k, dim=-1)
        self.expert_Nk = expert_Nk
        if routes_Nk is not None:
            expert_Nk = torch.where(routes_Nk == UNKNOWN, expert_Nk, routes_Nk.long())
        if self.bias_E is not None or routes_Nk is not None:
            # From all logits: the gate's gradient reaches the router for experts that it would not choose now, too.
            chosen_Nk = logits_NE.gather(-1, expert_Nk)
        expert_R = expert_Nk.flatten()
        sorted_R, order_R = torch.sort(expert_R, stable=True)
        back_R = torch.empty_like(order_R)
        back_R[order_R] = torch.arange(len(order_R), device=x_ND.device)
        # Not by bincount, which waits for the device to say how many there are.
        ends_E = torch.searchsorted(sorted_R, torch.arange(self.config.num_experts, device=x_ND.device), right=True)
        count_E = torch.diff(ends_E, prepend=ends_E.new_zeros(1))

        # Rounded from fp64: in fp32 the last bit depends on whether a number falls to the vector loop or to its end.
        gate_Nk = torch.sigmoid(chosen_Nk.double() if has_fp64(chosen_Nk.device) else chosen_Nk).float()
        rows_RD = dispatch(x_ND, gate_Nk, order_R, back_R)
        routed_RD = self.experts(rows_RD, count_E)
        if self.training:
            self.logits_NE, self.load_E = logits_NE, count_E / len(expert_R)
            self.count_E = count_E if self.count_E is None else self.count_E + count_E
        return combine(self.shared(x_ND), routed_RD, order_R, back_R)

    def experts(self, rows_RD: Tensor, count_E: Tensor) -> Tensor:
        """What the routed experts make of rows that are sorted by expert, `count_E` for each."""
        ends_E = count_E.cumsum(0).to(torch.int32)
        hidden_RF = swiglu(grouped_product(rows_RD, self.gate_up_EDF, ends_E))
        return grouped_product(hidden_RF, self.down_EFD, ends_E)


def dispatch(x_ND: Tensor, gate_Nk: Tensor, order_R: Tensor, back_R: Tensor) -> Tensor:
    """Every token once for each of its experts, scaled by the gate, in the order of the experts."""
    if native.why_not(x_ND, native.TRAINING) is None:
        return native.dispatch(x_ND, gate_Nk, order_R, back_R)
    gated = x_ND.unsqueeze(1) * gate_Nk.to(x_ND.dtype).unsqueeze(-1)
    return Gather.apply(gated.flatten(0, 1), order_R, back_R)


def combine(shared_ND: Tensor, routed_RD: Tensor, order_R: Tensor, back_R: Tensor) -> Tensor:
    """The shared expert's output plus each token's routed ones."""
    if native.why_not(shared_ND, native.TRAINING) is None:
        return native.combine(shared_ND, routed_RD, order_R, back_R)
    routed = Gather.apply(routed_RD, back_R, order_R)
    return shared_ND + routed.view(len(shared_ND), len(routed) // max(len(shared_ND), 1), shared_ND.shape[-1]).sum(1)
