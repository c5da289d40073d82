"""Published training runs, and what the model of cluster.py makes of them; none that was tried is left out.

Each has its source. Speeds are a GPU's: tokens a second where those were published, else useful TFLOP/s.
Layouts that were not published are the planner's own choice.
"""

from dataclasses import dataclass, replace

from herd.config import ModelConfig, MoEConfig, SpecialIds, preset
from herd.plan.cluster import GPUS, Gpu, Layout, Outcome, Run, best, outcome
from herd.plan.work import Work, work_of

NO_TOKENS = SpecialIds(bos=0, end_of_text=0, eom=0, eot=0, pad=0)
M16 = 16 * 2**20
"""Tokens of a step of Llama 3 405B."""


def dense(layers: int, dim: int, ffn: int, heads: int, kv: int, vocab: int) -> ModelConfig:
    """A dense transformer with SwiGLU whose every layer sees the whole past."""
    return ModelConfig(
        vocab_size=vocab,
        special=NO_TOKENS,
        dim=dim,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=dim // heads,
        dense_ffn_dim=ffn,
        moe=MoEConfig(num_experts=1, ffn_dim=1, every=layers + 1),
        vision=None,
        nope_every=1,
    )


def mixture(layers: int, dim: int, heads: int, kv: int, experts: int, top_k: int, ffn: int, vocab: int) -> Work:
    """A mixture in every layer without a shared expert, heads of 128."""
    expert = 3 * dim * ffn
    return Work(
        dim=dim,
        num_layers=layers,
        num_moe_layers=layers,
        num_experts=experts,
        top_k=top_k,
        dense_parameters=layers * (2 * dim * 128 * (heads + kv) + dim * experts),
        routed_parameters=layers * experts * expert,
        head_parameters=vocab * dim,
        attention_flops=4 * heads * 128 * layers * 4097 / 2,
        query_dim=heads * 128,
        key_dim=2 * kv * 128,
        hidden=layers * top_k * ffn,
        global_layers=layers,
    )


LLAMA_8B = dense(32, 4096, 14336, 32, 8, 128_256)
LLAMA_70B = dense(80, 8192, 28672, 64, 8, 128_256)
LLAMA_405B = dense(126, 16384, 53248, 128, 8, 128_256)
DEEPSEEK_V3 = Work(
    # Arithmetic of arXiv 2412.19437, section 4.2: 61 layers of which 3 are dense; 256 routed experts of 2048, 8 a token
    # on at most 4 machines, and a shared one. Latent attention: 187 M parameters a layer, 128 heads that score 192
    # channels and mix 128. One more layer predicts the second token.
    dim=7168,
    num_layers=62,
    num_moe_layers=59,
    num_experts=256,
    top_k=8,
    dense_parameters=62 * 187_107_328 + 3 * 3 * 7168 * 18432 + 59 * 3 * 7168 * 2048 + 59 * 7168 * 256,
    routed_parameters=59 * 256 * 3 * 7168 * 2048,
    head_parameters=129_280 * 7168,
    attention_flops=2 * 128 * (192 + 128) * 62 * 4097 / 2,
    query_dim=128 * 192,
    key_dim=128 * 320,
    hidden=59 * 9 * 2048 + 3 * 18432,
    global_layers=62,
    max_nodes=4,
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A run and its speed."""

    name: str
    source: str
    gpus: int
    run: Run
    tokens_per_s_gpu: float = 0.0
    tflops_gpu: float = 0.0
    searched: bool = False
    """Whether the layout is the planner's choice, as it was not published."""

    def predict(self) -> Outcome:
        return best(self.run, self.gpus, pipelined=True) if self.searched else outcome(self.run)

    def ratio(self) -> float:
        """Predicted speed over published: 1.2 where the model is a fifth too hopeful."""
        estimate = self.predict()
        if self.tokens_per_s_gpu:
            return estimate.tokens_per_s_gpu / self.tokens_per_s_gpu
        return estimate.tflops_gpu / self.tflops_gpu


def run_of(
    shape: ModelConfig | Work, gpu: str | Gpu, layout: Layout, *, length: int = 8192, batch: int, fp8: bool = False
) -> Run:
    work = shape if isinstance(shape, Work) else work_of(shape, length)
    card = gpu if isinstance(gpu, Gpu) else GPUS[gpu]
    return Run(work=work, gpu=card, layout=layout, length=length, batch_tokens=batch, fp8=fp8)


LLAMA_3 = "The Llama 3 Herd of Models, arXiv 2407.21783, table 4"
BRIDGE = "NVIDIA Megatron-Bridge, performance summary of 25.11, DGX-H100"
TITAN = "torchtitan, benchmarks/llama3_h100_202412, H100 of 96 GB at 500 W"
TITAN_H100 = replace(GPUS["h100"], memory=96e9, bandwidth=2.4e12)
CARD = "Llama 4 model card: GPU hours and tokens, all losses of time in them"


def published() -> list[Published]:
    """All of them."""

    def layout_of(**degrees: int | bool) -> Layout:
        return Layout(**({"data": 1, "sharded": False} | degrees))  # type: ignore[arg-type]

    return [
        Published(
            name="Llama 3 405B, 8K tokens",
            source=LLAMA_3,
            gpus=8192,
            tflops_gpu=430,
            run=run_of(LLAMA_405B, "h100", layout_of(data=64, tensor=8, pipeline=16, virtual=8), batch=M16),
        ),
        Published(
            name="Llama 3 405B, 8K tokens",
            source=LLAMA_3,
            gpus=16384,
            tflops_gpu=400,
            run=run_of(LLAMA_405B, "h100", layout_of(data=128, tensor=8, pipeline=16, virtual=8), batch=M16),
        ),
        Published(
            name="Llama 3 405B, 128K tokens",
            source=LLAMA_3,
            gpus=16384,
            tflops_gpu=380,
            run=run_of(
                LLAMA_405B,
                "h100",
                layout_of(data=8, tensor=8, context=16, pipeline=16, virtual=8),
                length=131_072,
                batch=M16,
            ),
        ),
        Published(
            name="DeepSeek-V3, fp8",
            source="DeepSeek-V3 Technical Report, arXiv 2412.19437: 180 K GPU hours a trillion tokens",
            gpus=2048,
            tokens_per_s_gpu=1e12 / (180e3 * 3600),
            run=run_of(
                DEEPSEEK_V3,
                "h800",
                layout_of(data=128, expert=64, pipeline=16, virtual=2),
                length=4096,
                batch=15360 * 4096,
                fp8=True,
            ),
        ),
        Published(
            name="Llama 4 Behemoth, fp8",
            source="Meta's announcement of Llama 4: 390 TFLOP/s; shape and layout unpublished, ours",
            gpus=32768,
            tflops_gpu=390,
            searched=True,
            run=run_of(preset("behemoth"), "h100", Layout(data=1), batch=2**26, fp8=True),
        ),
        Published(
            name="Llama 4 Scout, fp8",
            source=CARD + "; cards and layout unpublished, ours",
            gpus=8192,
            tokens_per_s_gpu=40e12 / (5.0e6 * 3600),
            searched=True,
            run=run_of(preset("scout"), "h100", Layout(data=1), batch=2**26, fp8=True),
        ),
        Published(
            name="Llama 4 Maverick, fp8",
            source=CARD + "; cards and layout unpublished, ours",
            gpus=8192,
            tokens_per_s_gpu=22e12 / (2.38e6 * 3600),
            searched=True,
            run=run_of(preset("maverick"), "h100", Layout(data=1), batch=2**26, fp8=True),
        ),
        Published(
            name="Llama 3 8B, fp8",
            source=BRIDGE,
            gpus=8,
            tokens_per_s_gpu=14451,
            run=run_of(LLAMA_8B, "h100", Layout(data=8), batch=128 * 8192, fp8=True),
        ),
        Published(
            name="Llama 3 70B, fp8",
            source=BRIDGE,
            gpus=64,
            tokens_per_s_gpu=1602,
            run=run_of(
                LLAMA_70B, "h100", layout_of(data=2, tensor=4, pipeline=8, virtual=5), batch=128 * 8192, fp8=True
            ),
        ),
        Published(
            name="Llama 3.1 405B, fp8",
            source=BRIDGE,
            gpus=1024,
            tokens_per_s_gpu=292,
            run=run_of(
                LLAMA_405B,
                "h100",
                layout_of(data=8, tensor=8, pipeline=8, context=2, virtual=8),
                batch=512 * 8192,
                fp8=True,
            ),
        ),
        Published(
            name="Qwen3 235B-A22B, fp8",
            source=BRIDGE,
            gpus=256,
            tokens_per_s_gpu=1575,
            run=run_of(
                mixture(94, 4096, 64, 4, 128, 8, 1536, 151_936),
                "h100",
                layout_of(data=16, tensor=2, pipeline=8, virtual=4, expert=32),
                length=4096,
                batch=4096 * 4096,
                fp8=True,
            ),
        ),
        Published(
            name="Llama 3.1 8B, bf16, compiled",
            source=TITAN,
            gpus=8,
            tokens_per_s_gpu=6667,
            run=run_of(LLAMA_8B, TITAN_H100, Layout(data=8, sequences=2), batch=16 * 8192),
        ),
        Published(
            name="Llama 3.1 8B, fp8, compiled",
            source=TITAN,
            gpus=128,
            tokens_per_s_gpu=8380,
            run=run_of(LLAMA_8B, TITAN_H100, Layout(data=128, sequences=2), batch=256 * 8192, fp8=True),
        ),
        Published(
            name="Llama 3.1 70B, fp8",
            source=TITAN,
            gpus=256,
            tokens_per_s_gpu=876,
            run=run_of(
                LLAMA_70B,
                TITAN_H100,
                Layout(data=32, tensor=8, sequences=16, recompute=True),
                batch=512 * 8192,
                fp8=True,
            ),
        ),
        Published(
            name="Llama 3.1 405B, fp8, interleaved",
            source=TITAN,
            gpus=512,
            tokens_per_s_gpu=128,
            run=run_of(
                LLAMA_405B,
                TITAN_H100,
                Layout(data=8, tensor=8, pipeline=8, virtual=2, recompute=True),
                batch=256 * 8192,
                fp8=True,
            ),
        ),
    ]


def table() -> list[str]:
    """Lines of markdown: every run, predicted and published, and the worst error."""
    lines = ["| run | GPUs | published | predicted | predicted / published | source |", "|---|---|---|---|---|---|"]
    ratios = []
    for one in published():
        estimate = one.predict()
        ratios.append(one.ratio())
        if one.tokens_per_s_gpu:
            figures = f"{one.tokens_per_s_gpu:,.0f} tokens/s | {estimate.tokens_per_s_gpu:,.0f}"
        else:
            figures = f"{one.tflops_gpu:.0f} TFLOP/s | {estimate.tflops_gpu:.0f}"
        chosen = " (layout ours)" if one.searched else ""
        lines.append(f"| {one.name}{chosen} | {one.gpus:,} | {figures} | {ratios[-1]:.2f} | {one.source} |")
    off = sorted(max(ratio, 1 / ratio) for ratio in ratios)
    lines += [
        "",
        f"Off by a factor of {off[len(off) // 2]:.2f} in the middle of {len(off)} runs, {off[-1]:.2f} at worst.",
    ]
    return lines
