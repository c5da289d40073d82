"""Documents that begin alike: with their beginning computed once, attention included, nothing else changes."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from herd.config import preset
from herd.model.attention import plan_attention
from herd.model.transformer import Transformer
from herd.train.sharing import share_prompts

CPU = torch.device("cpu")
DOCUMENTS = ((0, 20, 7), (0, 20, 17), (-1, 0, 9), (1, 33, 5), (1, 33, 1), (1, 33, 40), (-1, 0, 9))
"""Group, tokens of the beginning, tokens of its own."""


def world(chunk_size):
    """A model, and documents of three kinds: of two groups, and by themselves."""
    generator = torch.Generator().manual_seed(0)
    config = replace(preset("tiny", vocab_size=97), chunk_size=chunk_size, num_layers=4)
    model = Transformer(config).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1
    begins = {group: torch.randint(97, (length,), generator=generator) for group, length, _ in DOCUMENTS}
    tokens, prompts, starts = [], [], [0]
    for group, length, own in DOCUMENTS:
        tokens += [begins[group][:length], torch.randint(97, (own,), generator=generator)]
        prompts += [group] * length + [-1] * own
        starts.append(starts[-1] + length + own)
    positions = torch.cat([torch.arange(b - a) for a, b in pairwise(starts)])
    return model, torch.cat(tokens), positions, torch.tensor(starts, dtype=torch.int32), torch.tensor(prompts)


@pytest.mark.parametrize(("chunk_size", "joint"), [(128, True), (16, False)])
def test_hidden_states_and_gradients_are_those_of_each_document_by_itself(chunk_size, joint):
    model, tokens_N, positions_N, starts_S, prompts_N = world(chunk_size)
    sharing = share_prompts(prompts_N, starts_S, CPU, attention=True)
    assert len(sharing.pick_M) == len(tokens_N) - 20 - 2 * 33
    plan = plan_attention(positions_N, starts_S, model.config, cached=False, sharing=sharing)
    # A chunk that ends within a document is beyond it: then each document attends by itself.
    assert (plan.sharing.prefixes is not None) == joint
    found = []
    for one in (None, sharing):
        model.zero_grad()
        hidden_ND = model(tokens_N, positions_N=positions_N, starts_S=starts_S, sharing=one)
        (
            hidden_ND * torch.linspace(-1, 1, hidden_ND.numel(), dtype=torch.float64).view(hidden_ND.shape)
        ).sum().backward()
        found.append([hidden_ND.detach(), *(p.grad.clone() for p in model.layers.parameters() if p.grad is not None)])
    for by_itself, together in zip(*found, strict=True):
        torch.testing.assert_close(by_itself, together, rtol=1e-4, atol=1e-5)  # norms are in fp32
