"""How fast a cluster draws tokens: the roofline of a decoding step, beside published throughputs.

A step of n sequences on one replica reads all weights, and each sequence's keys and values, and multiplies each token
with the parameters that it visits:

    seconds = (weight bytes / bandwidth + n (cache bytes / bandwidth + 2 active parameters / fp8 peak)) / REACHED

`REACHED`, the share of that speed that remains for a real engine, is fitted to one published throughput, Llama 3.1 405B
with 2,048 tokens of answer, and to no other. Weights in 8 bits, cache in fp8, as many sequences as there is room for.
Left out: prompts, experts that no token visits, traffic between cards but for what REACHED has of it.
"""

from dataclasses import dataclass

from herd.config import ModelConfig, preset
from herd.errors import HerdError
from herd.plan.cluster import GPUS, ROOM, Gpu
from herd.plan.counts import cache_bytes, count, weight_bytes
from herd.plan.published import LLAMA_8B, LLAMA_70B, LLAMA_405B

REACHED = 0.39


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """One replica of a model that answers."""

    gpus: int
    fixed_s: float
    """Of a step, however many sequences it has."""
    sequence_s: float
    """Of each sequence in a step."""
    max_sequences: int
    """That there is room for."""

    @property
    def tokens_per_s(self) -> float:
        """With all that there is room for."""
        return self.max_sequences / (self.fixed_s + self.max_sequences * self.sequence_s)


def decoder(config: ModelConfig, gpu: Gpu, *, gpus: int, context: int) -> Decoder:
    """A replica on `gpus` cards whose sequences have `context` tokens on average."""
    weights, cache = weight_bytes(config, "int8"), cache_bytes(config, context, number_bytes=1)
    room = int((ROOM * gpu.memory * gpus - weights) / cache)
    if room < 1:
        raise HerdError(f"{weights / 1e9:.0f} GB of weights leave no room for a sequence on {gpus} GPUs: take more")
    bandwidth, peak = gpu.bandwidth * gpus * REACHED, gpu.fp8 * gpus * REACHED
    return Decoder(
        gpus=gpus,
        fixed_s=weights / bandwidth,
        sequence_s=cache / bandwidth + 2 * count(config).active / peak,
        max_sequences=room,
    )


def smallest_replica(config: ModelConfig, gpu: Gpu) -> int:
    """Cards of a replica, a power of two, of whose memory the weights take at most 0.7."""
    gpus = 1
    while weight_bytes(config, "int8") > 0.7 * gpu.memory * gpus:
        gpus *= 2
    return gpus


SOURCE = "NVIDIA TensorRT-LLM 1.0, docs/source/performance/perf-overview.md, H100, fp8"
PROMPT, ANSWER = 128, 2048


def published_decoding() -> list[tuple[str, float, float]]:
    """Runs of SOURCE with 128 tokens in and 2,048 out: name, published tokens/s, predicted. The first is fitted."""
    runs = [
        ("Llama 3.1 405B", LLAMA_405B, 8, 4340.0),
        ("Llama 3.3 70B", LLAMA_70B, 2, 6651.0),
        ("Llama 3.1 8B", LLAMA_8B, 1, 22714.0),
        ("Llama 4 Scout", preset("scout"), 4, 15130.0),
        ("Llama 4 Maverick", preset("maverick"), 8, 10829.0),
    ]
    return [
        (
            f"{name} on {gpus}",
            published,
            decoder(config, GPUS["h100"], gpus=gpus, context=PROMPT + ANSWER // 2).tokens_per_s,
        )
        for name, config, gpus, published in runs
    ]


def table() -> list[str]:
    """Lines of markdown."""
    lines = ["| model and H100 cards | published, tokens/s | predicted | predicted / published |", "|---|---|---|---|"]
    return lines + [
        f"| {name} | {published:,.0f} | {predicted:,.0f} | {predicted / published:.2f} |"
        for name, published, predicted in published_decoding()
    ]
