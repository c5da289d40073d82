"""`herd bench NAME`: the benches' usages."""

from pathlib import Path
from typing import Literal

from herd.commands.bench_guard import bench_code, bench_guard
from herd.commands.channels import bench_channels
from herd.commands.command import command, load_object


def bench_soak(
    folder: Path, /, *, minutes: float = 30.0, seed: int = 0, out: Path | None = None, json: bool = False
) -> None:
    """Run the engine under random requests, cancellations and new weights, and watch its memory.

    Args:
        folder: Folder of a model.
        minutes: How long.
        seed: Of the requests.
        out: Picture of the memory to write, an SVG.
        json: Print one JSON object, for scripts.
    """
    load_object("herd.bench.soak:soak")(folder, minutes=minutes, seed=seed, out=out, as_json=json)


def bench_parity(*, json: bool = False) -> None:
    """Compare logits with transformers and with Meta's reference.

    Args:
        json: Print one JSON object, for scripts.
    """
    load_object("herd.bench.parity:parity")(as_json=json)


def bench_resume(*, json: bool = False) -> None:
    """Measure the cost of asynchronous checkpoints beside synchronous ones.

    Args:
        json: Print one JSON object, for scripts.
    """
    load_object("herd.bench.resume:resume")(as_json=json)


def bench_plan(*, calibrate: bool = False, json: bool = False) -> None:
    """Compare the estimates of herd plan --here with twelve training runs.

    Args:
        calibrate: Print the plan's constants fitted to this machine's runs.
        json: Print one JSON object, for scripts.
    """
    if calibrate:
        load_object("herd.bench.plan:calibrate")()
    else:
        load_object("herd.bench.plan:bench_plan")(as_json=json)


def bench_balance(
    *, data: Path, out: Path, experts: tuple[int, ...] = (16, 128), num_steps: int = 1000, json: bool = False
) -> None:
    """Measure the experts' load over a run, balanced by biases and by an auxiliary loss.

    Args:
        data: Data folder that is trained on.
        out: Folder of the runs; those that are there are resumed or read.
        experts: Experts of each model.
        num_steps: Steps of each run, of about 4,096 tokens.
        json: Print one JSON object, for scripts.
    """
    load_object("herd.bench.balance:balance")(data, out, experts=experts, num_steps=num_steps, as_json=json)


def bench_ablation(
    *,
    data: Path,
    out: Path,
    variants: tuple[str, ...] = (),
    seeds: int = 3,
    num_tokens: int = 4_000_000,
    longest: int = 1_048_576,
    json: bool = False,
) -> None:
    """Train small models without one part of iRoPE each, and ask them for needles far beyond their training length.

    Args:
        data: Data folder that is trained on.
        out: Folder of the runs; those that are there are resumed or read.
        variants: Such as "RoPE in all layers" or "temperature off"; all if none is given.
        seeds: Runs of each variant.
        num_tokens: Tokens of each run.
        longest: Tokens of the longest text that is asked about.
        json: Print one JSON object, for scripts.
    """
    run = load_object("herd.bench.ablation:ablation")
    run(data, out, variants=variants, seeds=seeds, num_tokens=num_tokens, longest=longest, as_json=json)


def bench_engine(
    *,
    shapes: tuple[str, ...] = ("S", "M"),
    precisions: tuple[str, ...] = ("bf16", "int8", "int4"),
    cases: tuple[str, ...] = (),
    llama_cpp: Path | None = None,
    json: bool = False,
) -> None:
    """Compare the speed of prompts and answers with llama.cpp and transformers on the same weights.

    Args:
        shapes: Of random models: S, M, S16 (Scout's experts), S128 (Maverick's).
        precisions: bf16, int8, int4.
        cases: Such as "prefill 4096" or "decode 8 after 64"; a few of each if none is given.
        llama_cpp: The folder of llama.cpp's programs, built for this processor; else the library of its wheel.
        json: Print one JSON object, for scripts.
    """
    run = load_object("herd.bench.engine:engine")
    run(shapes=shapes, precisions=precisions, cases=cases, llama_cpp=llama_cpp, as_json=json)


def bench_serve(
    *,
    clients: tuple[int, ...] = (1, 8, 32),
    rounds: int = 3,
    seconds: float = 5.0,
    llama_cpp: Path | None = None,
    guard: Path | None = None,
    soak_minutes: float = 0.0,
    json: bool = False,
) -> None:
    """Stream answers to 1, 8 and 32 clients: pieces/s and latency beside the engine alone and llama.cpp's server.

    Args:
        clients: Concurrent clients.
        rounds: Rounds in which the engines alternate.
        seconds: Duration of each round.
        llama_cpp: The folder of llama.cpp's programs with its llama-server; else the server in its wheel.
        guard: Folder of a guard; measures what it costs instead, beside the same server without it.
        soak_minutes: Stream to 64 clients for so long instead, without a peer, and fail if the server's memory grows.
        json: Print one JSON object, for scripts.
    """
    if soak_minutes:
        load_object("herd.bench.serve_soak:soak")(minutes=soak_minutes, as_json=json)
        return
    if guard is not None:
        load_object("herd.bench.serve_guard:measure")(
            guard, clients=clients, rounds=rounds, seconds=seconds, as_json=json
        )
        return
    run = load_object("herd.bench.serve:serve")
    run(clients=clients, rounds=rounds, seconds=seconds, llama_cpp_folder=llama_cpp, as_json=json)


def bench_needle(
    folder: Path,
    /,
    *,
    data: Path,
    context: int = 10 * 2**20,
    seeds: int = 10,
    budget_gb: float = 16.0,
    json: bool = False,
) -> None:
    """Read up to ten million tokens and ask for needles in them.

    Args:
        folder: Folder of a model whose last layer is its only global one, such as one of shape tiny-long.
        data: Data folder that it was trained on: its documents and keys are not asked about.
        context: Tokens to read, such as 128K or 10M.
        seeds: Questions at each of the ten depths.
        budget_gb: Most memory for the cache; a longer context is refused.
        json: Print one JSON object, for scripts.
    """
    load_object("herd.bench.needle:needle")(
        folder, data, context=context, seeds=seeds, budget_gb=budget_gb, as_json=json
    )


def bench_lora(
    folder: Path,
    /,
    *,
    data: Path,
    out: Path,
    rank: int = 16,
    rates: tuple[float, ...] = (0.002,),
    seeds: int = 3,
    num_tokens: int = 500_000,
    json: bool = False,
) -> None:
    """Fine-tune a model on chats as a whole and by adapters, and measure what it forgets of text and learns of chats.

    Args:
        folder: Folder of a model that was pre-trained.
        data: Data folder whose chats are trained on, and whose held-out part is measured on.
        out: Folder of the runs; those that are there are resumed or read.
        rank: Of the adapters.
        rates: Their learning rates, one run each.
        seeds: Runs of each.
        num_tokens: Tokens of each run.
        json: Print one JSON object, for scripts.
    """
    run = load_object("herd.bench.lora:lora")
    run(folder, data, out, rank=rank, rates=rates, seeds=seeds, num_tokens=num_tokens, as_json=json)


def bench_tiny(run: Path, /, *, json: bool = False) -> None:
    """Compare the figures of a finished run of the tiny recipe with its targets.

    Args:
        run: Folder of the run; nothing is measured again.
        json: Print one JSON object, for scripts.
    """
    load_object("herd.bench.tiny:tiny")(run, as_json=json)


def bench_train(*, cases: tuple[str, ...] = ("S", "M"), rounds: int = 2, steps: int = 5, json: bool = False) -> None:
    """Time a training step beside transformers and a minimal implementation in PyTorch.

    Args:
        cases: Any of S, M, S16, S128 (shapes beside the peers), dense (S and M beside their dense twins), lengths
            (documents of 512 to 65,536 tokens) and local (the same without global layers).
        rounds: Rounds in which the engines alternate.
        steps: Steps that are timed in each round, after two to warm up.
        json: Print one JSON object, for scripts.
    """
    load_object("herd.bench.train:train")(cases=cases, rounds=rounds, steps=steps, as_json=json)


def bench_scaling(*, steps: int = 50, json: bool = False) -> None:
    """Train on 1 to 4 ranks along every axis: losses, tokens/s and bytes beside one rank's.

    Args:
        steps: Training steps of each case.
        json: Print one JSON object, for scripts.
    """
    load_object("herd.bench.scaling:scaling")(steps=steps, as_json=json)


def bench_gpu(*, json: bool = False) -> None:
    """Check a CUDA card against the CPU, and measure training and decoding on it.

    Args:
        json: Print one JSON object, for scripts.
    """
    load_object("herd.bench.gpu:gpu")(as_json=json)


def bench_data(*, cases: tuple[str, ...] = (), megabytes: float = 5.0, rounds: int = 3, json: bool = False) -> None:
    """Compare the speed of cleaning with datatrove, of tokenising with tokenizers, of the loader with training.

    Args:
        cases: Any of cleaning, tokens, loader; all if none is given.
        megabytes: Text of the packages that is used.
        rounds: Rounds in which Herd and its peers alternate.
        json: Print one JSON object, for scripts.
    """
    load_object("herd.bench.data:data")(cases=cases, megabytes=megabytes, rounds=rounds, as_json=json)


def bench_select(*, out: Path, seeds: int = 5, json: bool = False) -> None:
    """Check the difficulties of herd select against tasks of a known one, and fine-tune on the hard and on other parts.

    Args:
        out: Folder of the runs; those that are there are resumed or read.
        seeds: Repetitions, each with its own data, models and selections.
        json: Print one JSON object, for scripts.
    """
    load_object("herd.bench.select:bench_select")(out, seeds=seeds, as_json=json)


def bench_dpo(*, out: Path, seeds: int = 5, json: bool = False) -> None:
    """Train small models on pairs that prefer one form of right answers, beside a random winner and fine-tuning.

    Args:
        out: Folder of the runs; those that are there are resumed or read.
        seeds: Repetitions, each with its own data, model and pairs.
        json: Print one JSON object, for scripts.
    """
    load_object("herd.bench.dpo:bench_dpo")(out, seeds=seeds, as_json=json)


def bench_distill(
    *,
    data: Path,
    teacher: Path,
    out: Path | None = None,
    cases: tuple[Literal["speed", "learning"], ...] = ("speed", "learning"),
    seeds: int = 5,
    num_tokens: int = 400_000,
    json: bool = False,
) -> None:
    """Measure what teaching costs, and what small students learn from a teacher beside controls.

    Args:
        data: Data folder that teacher and student are trained on, of at most 65,536 tokens.
        teacher: Folder of the teacher.
        out: Folder for the rows and the trainings of `learning`; what is finished there is read.
        cases: `speed`: seconds of a teacher's and a student's step; `learning`: students of each arm.
        seeds: Students of each arm.
        num_tokens: Of the training of a student.
        json: Print one JSON object, for scripts.
    """
    load_object("herd.bench.distill:bench_distill")(
        data, teacher, out, cases=cases, seeds=seeds, num_tokens=num_tokens, as_json=json
    )


def bench_rl(
    *,
    cases: tuple[Literal["simulated", "published", "cluster", "real", "learning", "ladder", "router"], ...] = (
        "simulated",
    ),
    latencies: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0, 3.0),
    lags: tuple[int, ...] = (1, 2, 4, 8),
    draw_s: float = 0.73,
    train_s: float = 0.80,
    publish_s: float = 0.0,
    keep: float = 1.0,
    steps: int = 60,
    seeds: int = 5,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Seconds of a trained group, by the latency of the environment and the schedule; and what RL is worth.

    Args:
        cases: `simulated`: a discrete-event model; `published`: that model beside public runs (minutes); `cluster`: a
            Behemoth on 1,024 to 32,768 GPUs (a minute); `real`: the schedules as runs (an hour); `learning`: RL beside
            more fine-tuning, uniform dealing and random rewards (half an hour a seed); `ladder`: the corrections at lag
            8 (a quarter of an hour a seed); `router`: routing replay where the engine's routers have noise (minutes a
            seed).
        latencies: Medians of the environment, in seconds.
        lags: Of the asynchronous schedules.
        draw_s: Measured seconds to draw a step's 384 answers on one core.
        train_s: Measured seconds to train on them on one core.
        publish_s: Measured seconds to hand new weights to the engine.
        keep: Share of the groups whose rewards differ.
        steps: Simulated or real steps of each schedule.
        seeds: Repetitions of `learning`, `ladder` and `router`, each with its own data and models.
        out: Folder for the models of all but the first three; what is finished there is read.
        json: Print one JSON object, for scripts.
    """
    service = load_object("herd.bench.rl:Service")(draw_s=draw_s, train_s=train_s, publish_s=publish_s, keep=keep)
    load_object("herd.bench.rl:bench_rl")(
        cases=cases, latencies=latencies, lags=lags, service=service, steps=steps, seeds=seeds, out=out, as_json=json
    )


BENCHES = {
    "bench channels": command(bench_channels, example="herd bench channels --messages 1000 --kills 20"),
    "bench guard": command(bench_guard, example="herd bench guard --prompt-guard runs/mine/prompt-guard"),
    "bench needle": command(
        bench_needle,
        example="herd bench needle runs/mine/midtrain --data runs/tiny/data --context 1M",
        on_device=True,
    ),
    "bench soak": command(
        bench_soak,
        example="herd bench soak runs/tiny/sft --minutes 30 --out soak.svg",
        computes=True,
        on_device=True,
    ),
    "bench parity": command(bench_parity, example="herd bench parity --json"),
    "bench resume": command(bench_resume, example="herd bench resume --json"),
    "bench plan": command(bench_plan, example="herd bench plan --json", computes=True),
    "bench balance": command(
        bench_balance, example="herd bench balance --data runs/tiny/data --out runs/balance", computes=True
    ),
    "bench ablation": command(
        bench_ablation, example="herd bench ablation --data runs/needle/data --out runs/ablation", computes=True
    ),
    "bench lora": command(
        bench_lora,
        example="herd bench lora runs/tiny/pretrain --data runs/tiny/data --out runs/lora",
        computes=True,
    ),
    "bench engine": command(
        bench_engine,
        example='herd bench engine --shapes S --precisions bf16 --cases "prefill 512" "decode 1 after 512"',
    ),
    "bench serve": command(bench_serve, example="herd bench serve --clients 1 32 --json"),
    "bench train": command(bench_train, example="herd bench train --cases S M --json", computes=True),
    "bench tiny": command(bench_tiny, example="herd bench tiny runs/tiny --json"),
    "bench scaling": command(bench_scaling, example="herd bench scaling --json"),
    "bench select": command(bench_select, example="herd bench select --out runs/select", computes=True),
    "bench dpo": command(bench_dpo, example="herd bench dpo --out runs/dpo", computes=True),
    "bench distill": command(
        bench_distill,
        example="herd bench distill --data runs/tiny/data --teacher runs/tiny/pretrain --out runs/distill",
        computes=True,
    ),
    "bench rl": command(bench_rl, example="herd bench rl --cases simulated --latencies 0 1"),
    "bench code": command(bench_code, example="herd bench code PurpleLlama --json"),
    "bench data": command(bench_data, example="herd bench data --cases cleaning --json"),
    "bench gpu": command(bench_gpu, example="herd bench gpu --json"),
}
