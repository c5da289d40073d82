"""How long a training step takes on a cluster, from public figures of its parts; and the layout that is fastest.

A micro-batch of m tokens on one rank takes the sum of
  products      FLOPs / (peak x the share of it that libraries reach on large products)
  attention     FLOPs / (bf16 peak x the share that fused kernels reach); their backward makes 2.5 forwards
  passes        bytes of norms, residuals, rotation, SwiGLU, rows to experts and back / memory bandwidth
  tensor        gathers and scatters of activations inside a machine, of which half is hidden behind products
  expert        rows to their experts and back, over the network where experts are on several machines; half is hidden
  context       keys and values round the ring in layers that see past a chunk; half is hidden
A step takes the micro-batches, the pipeline's fill and drain, what gathering weights and scattering gradients adds
beyond the work that hides it, and the optimizer's pass over its state. Each constant below is a property of hardware or
library, but for one: `REST`, fitted to one published run. What is left out: failures, restarts, input, uneven experts,
products too small for the card. docs/plan.md sets the outcome beside published runs.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product

from herd.errors import HerdError
from herd.plan.work import Work

HIDDEN = 0.5
"""Share of communication inside a layer that overlaps with its products (Megatron's and torchtitan's asynchronous
tensor parallelism hide about half; DeepSeek's DualPipe nearly all, plain loops nothing)."""
LINK_SHARE = 0.75
"""Of a link's bandwidth that large collectives reach (NCCL's bus bandwidth on 8 GPUs and on InfiniBand)."""
PASS_SHARE = 0.8
"""Of the memory bandwidth that element-wise passes reach."""
ATTENTION_SHARE = 0.55
"""Of the bf16 peak that fused causal attention reaches, forward and backward (FlashAttention 2 on A100, 3 on H100)."""
REST = 0.77
"""Of the speed that the parts add up to, what is left: launches, uneven machines, clocks under full power. Fitted to
the first run of published.py (Llama 3 405B on 8,192 cards) and to no other."""
QUANTISE = 1.5
"""Element-wise passes in fp8 beside those in bf16: inputs, weights and gradients are also scaled and cast."""
STATE_BYTES = 12
"""Of fp32 master weight and two moments, a parameter."""
ROOM = 0.9
"""Of a GPU's memory that a plan may fill."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Public figures of one card in its usual machine; FLOP/s dense, bytes/s each way."""

    bf16: float
    fp8: float
    memory: float
    bandwidth: float
    link: float
    """To the other cards of its machine."""
    network: float
    """To other machines, a card."""
    product_share: float
    """Of the peak that large matrix products reach in PyTorch (power limits included)."""
    a_machine: int = 8


GPUS = {
    "a100": Gpu(bf16=312e12, fp8=312e12, memory=80e9, bandwidth=2.0e12, link=300e9, network=25e9, product_share=0.80),
    "h100": Gpu(bf16=989e12, fp8=1979e12, memory=80e9, bandwidth=3.35e12, link=450e9, network=50e9, product_share=0.70),
    "h800": Gpu(bf16=989e12, fp8=1979e12, memory=80e9, bandwidth=3.35e12, link=200e9, network=50e9, product_share=0.70),
    "h200": Gpu(bf16=989e12, fp8=1979e12, memory=141e9, bandwidth=4.8e12, link=450e9, network=50e9, product_share=0.70),
    "b200": Gpu(
        bf16=2250e12, fp8=4500e12, memory=180e9, bandwidth=7.7e12, link=900e9, network=50e9, product_share=0.70
    ),
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Degrees of the mesh: data x context x tensor x pipeline ranks; experts are spread over the first three."""

    data: int
    tensor: int = 1
    context: int = 1
    pipeline: int = 1
    """Herd has none: for published runs alone."""
    virtual: int = 1
    """Pieces of the model that a pipeline rank holds."""
    expert: int = 1
    sharded: bool = True
    """Weights and gradients sharded over the data ranks and gathered for each micro-batch (FSDP); else the optimizer's
    state alone is sharded, and weights are gathered once a step."""
    recompute: bool = False
    """Whether layers keep only their input and run forward again in the backward."""
    sequences: int = 1
    """Documents of a micro-batch."""

    @property
    def ranks(self) -> int:
        return self.data * self.tensor * self.context * self.pipeline


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is trained on what."""

    work: Work
    gpu: Gpu
    layout: Layout
    length: int
    """Tokens of a document."""
    batch_tokens: int
    """Tokens of an optimizer step, all ranks."""
    fp8: bool = False

    @property
    def micro_batches(self) -> float:
        """Of a data rank in a step."""
        return self.batch_tokens / (self.layout.data * self.layout.sequences * self.length)

    @property
    def tokens(self) -> float:
        """Of a micro-batch, on one context rank."""
        return self.layout.sequences * self.length / self.layout.context


def parameters_of_rank(run: Run) -> float:
    """Parameters that a rank works with, before sharding over data."""
    work, layout = run.work, run.layout
    dense = (work.dense_parameters + 2 * work.head_parameters) / layout.tensor
    return (dense + work.routed_parameters / layout.expert) / layout.pipeline


def memory_by_part(run: Run) -> dict[str, float]:
    """Bytes on the fullest rank: weights and gradients in bf16, optimizer state, activations, 1,024 rows of logits.

    Activations: what the backward needs of a token, of as many micro-batches as a pipeline has under way.
    """
    work, layout = run.work, run.layout
    held = parameters_of_rank(run)
    total = work.total_parameters
    sharded = total / layout.ranks if layout.sharded else held
    # With FSDP one layer's weights are whole at a time, the next one's on their way.
    passing = 2 * held / (work.num_layers / layout.pipeline) if layout.sharded else 0.0
    under_way = min(run.micro_batches, layout.pipeline) * (
        1 + (layout.pipeline - 1) / (layout.pipeline * layout.virtual) if layout.pipeline > 1 else 1
    )
    a_layer = work.kept_elements / work.num_layers
    inputs = work.num_layers * work.dim + a_layer if layout.recompute else work.kept_elements
    return {
        "weights": 2 * (sharded + passing),
        "gradients": 2 * (sharded + passing / 2),
        "optimizer": STATE_BYTES * total / layout.ranks,
        "activations": 2 * inputs * run.tokens * under_way / (layout.tensor * layout.pipeline),
        "logits": 1024 * work.head_parameters / work.dim * 4 / layout.tensor,
    }


def seconds_by_part(run: Run) -> dict[str, float]:
    """A step's seconds by part, on the rank that all wait for."""
    work, gpu, layout, m = run.work, run.gpu, run.layout, run.tokens
    share = 1 / (layout.tensor * layout.pipeline)
    again = 4 / 3 if layout.recompute else 1
    peak = gpu.fp8 if run.fp8 else gpu.bf16
    products = again * 6 * m * work.matrix_parameters * share / (peak * gpu.product_share)
    products += 6 * m * work.head_parameters * share / (gpu.bf16 * gpu.product_share)
    attention = (3.5 + (1 if layout.recompute else 0)) * m * work.attention_flops * share / (gpu.bf16 * ATTENTION_SHARE)
    elements = 3 * again * work.traffic_elements * (QUANTISE if run.fp8 else 1)
    passes = 2 * elements * m * share / (gpu.bandwidth * PASS_SHARE)
    # Forward and backward each gather before and scatter after attention and feed-forward.
    moved = 8 * again * 2 * m * work.dim * work.num_layers / layout.pipeline
    tensor = HIDDEN * moved * (1 - 1 / layout.tensor) / (gpu.link * LINK_SHARE)
    expert = HIDDEN * again * expert_seconds(run)
    turns = 3 * 2 * m * work.key_dim * work.global_layers / layout.pipeline * (layout.context - 1) / layout.tensor
    ring_link = gpu.network if layout.context * layout.tensor > gpu.a_machine else gpu.link
    context = HIDDEN * turns / (ring_link * LINK_SHARE)
    micro = {
        "products": products,
        "attention": attention,
        "passes": passes,
        "tensor": tensor,
        "expert": expert,
        "context": context,
    }
    busy = sum(micro.values())
    number = run.micro_batches
    parts = {name: number * value for name, value in micro.items()}
    parts["pipeline"] = busy * (layout.pipeline - 1) / layout.virtual
    parts["data"] = data_seconds(run, busy)
    parts["optimizer"] = 28 * work.total_parameters / layout.ranks / (gpu.bandwidth * PASS_SHARE)
    return parts


def expert_seconds(run: Run) -> float:
    """A micro-batch's rows to their experts and back, forward and backward, in bf16."""
    work, gpu, layout = run.work, run.gpu, run.layout
    if layout.expert == 1 or not work.num_moe_layers:
        return 0.0
    rows = run.tokens / layout.tensor * work.num_moe_layers / layout.pipeline
    a_copy = 4 * 2 * work.dim  # there and back, forward and backward
    machines = max(1.0, layout.expert / gpu.a_machine)
    met = machines * (1 - (1 - 1 / machines) ** work.top_k)  # machines that a token's experts are on
    if work.max_nodes is not None:
        met = min(met, work.max_nodes)
    far = met * (1 - 1 / machines)
    near = work.top_k * (1 - 1 / layout.expert)
    return rows * a_copy * max(far / (gpu.network * LINK_SHARE), near / (gpu.link * LINK_SHARE))


def data_seconds(run: Run, busy: float) -> float:
    """What weights and gradients between data ranks add to a step beyond the work that hides them."""
    gpu, layout = run.gpu, run.layout
    copies = layout.data * layout.context
    if copies == 1:
        return 0.0
    link = gpu.network if layout.ranks > gpu.a_machine else gpu.link
    # Sharded: bf16 weights in for the forward and the backward, gradients out after it, each micro-batch; else fp32
    # gradients out and bf16 weights in once a step. Six bytes both ways.
    moving = 6 * parameters_of_rank(run) * (1 - 1 / copies) / (link * LINK_SHARE)
    if layout.sharded:
        return run.micro_batches * max(0.0, moving - busy) + moving / run.work.num_layers
    return max(moving / run.work.num_layers, moving - busy * min(1.0, run.micro_batches))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run comes to."""

    layout: Layout
    seconds: dict[str, float]
    memory: dict[str, float]
    step_s: float
    tokens_per_s_gpu: float
    tflops_gpu: float
    """Useful FLOPs, of 1e12, a second and GPU."""

    @property
    def memory_bytes(self) -> float:
        return sum(self.memory.values())


def outcome(run: Run) -> Outcome:
    """The run's step."""
    parts = seconds_by_part(run)
    parts["rest"] = sum(parts.values()) * (1 / REST - 1)
    step_s = sum(parts.values())
    speed = run.batch_tokens / step_s / run.layout.ranks
    return Outcome(
        layout=run.layout,
        seconds=parts,
        memory=memory_by_part(run),
        step_s=step_s,
        tokens_per_s_gpu=speed,
        tflops_gpu=speed * run.work.flops / 1e12,
    )


def layouts(run: Run, gpus: int, *, pipelined: bool) -> Iterator[Layout]:
    """Meshes over `gpus` cards: of Herd's own kinds, or with `pipelined` with stages too, which Herd does not run."""
    work, machine = run.work, run.gpu.a_machine
    experts = [1, 2, 4, 8, 16, 32, 64, 128] if work.num_moe_layers else [1]
    degrees = product((1, 2, 4, 8), (1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16) if pipelined else (1,), experts)
    for tensor, context, stages, expert in degrees:
        ranks = tensor * context * stages
        if gpus % ranks or tensor > machine or (context > 1 and run.length < 2048 * context):
            continue
        if work.num_experts % expert or gpus // stages % expert:
            continue
        for recompute, sharded, sequences in product((False, True), (True, False), (1, 2, 4, 8)):
            yield Layout(
                data=gpus // ranks,
                tensor=tensor,
                context=context,
                pipeline=stages,
                virtual=max(1, work.num_layers // (2 * stages)) if stages > 1 else 1,
                expert=expert,
                sharded=sharded,
                recompute=recompute,
                sequences=sequences,
            )


def best(run: Run, gpus: int, *, pipelined: bool = False) -> Outcome:
    """The fastest layout that fits, whatever `run.layout` is."""
    found: list[Outcome] = []
    least = float("inf")
    for layout in layouts(run, gpus, pipelined=pipelined):
        tried = replace(run, layout=layout)
        if tried.micro_batches < 1 or tried.micro_batches % 1:
            continue
        estimate = outcome(tried)
        least = min(least, estimate.memory_bytes)
        if estimate.memory_bytes <= ROOM * run.gpu.memory:
            found.append(estimate)
    if not found:
        if least == float("inf"):
            even = run.length * gpus // run.gpu.a_machine
            raise HerdError(
                f"{run.batch_tokens} tokens a step in documents of {run.length} are not shared evenly by {gpus} GPUs: "
                f"set --batch-tokens to a multiple of {even}"
            )
        room = ROOM * run.gpu.memory / 1e9
        raise HerdError(f"no layout fits: the leanest takes {least / 1e9:.0f} GB of {room:.0f} a GPU: take more --gpus")
    return min(found, key=lambda estimate: estimate.step_s)


def as_json(estimate: Outcome) -> dict[str, object]:
    """Everything, for scripts."""
    return {**asdict(estimate), "memory_bytes": estimate.memory_bytes}
