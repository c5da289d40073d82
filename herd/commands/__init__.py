"""The table of commands, and what each does. Nothing heavy is imported before a command is called.

A command is a function whose signature is its usage (tyro reads it): parameters before the `/` are positional, the
others are options. The commands of the stages come from `STEPS`, the table that `herd run` follows too.
"""

import dataclasses
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from herd import __version__
from herd.commands.bench import BENCHES
from herd.commands.command import Command, command, named
from herd.config import PRESETS, preset
from herd.core.child import run_in_child
from herd.core.console import exit_code, logged_to, traceback_log
from herd.core.errors import HerdError
from herd.core.files import partial as work_of
from herd.plan.counts import Precision
from herd.stages.recipe import Node, Step, load_recipe, run_recipe, run_step
from herd.stages.unfinished import Unfinished, how_unfinished, telling_what_is_kept

TALKER = Path("runs/tiny/sft")


def call_at(place: str, *args: Any) -> Any:
    return named(place)(*args)


def step(name: str, config: str, function: str, *, reads: tuple[str, ...] = (), writes: str) -> Step:
    """A stage by the places of its config and its function; picklable, for a process of its own."""
    does = partial(call_at, function)
    return Step(name=name, config=partial(named, config), function=does, reads=reads, writes=writes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoSettings:
    """The config of a stage that has nothing to set."""


def write_report(_: NoSettings, *stages_and_out: Path) -> Path:
    """The report as a step of a recipe: it reads the whole run's folder."""
    out = stages_and_out[-1]
    path: Path = named("herd.evaluate.report:report")(out.parent, out)
    return path


# In the order of a model's life.
STEPS = (
    step("data", "herd.config:DataConfig", "herd.stages.data:build_data", writes="data"),
    step("vision", "herd.config:VisionStageConfig", "herd.stages.vision:vision", reads=("data",), writes="model"),
    step(
        "pretrain",
        "herd.config:PretrainConfig",
        "herd.stages.pretrain:pretrain",
        reads=("model", "data"),
        writes="model",
    ),
    step(
        "midtrain",
        "herd.config:MidtrainConfig",
        "herd.stages.midtrain:midtrain",
        reads=("model", "data"),
        writes="model",
    ),
    step("sft", "herd.config:SftConfig", "herd.stages.sft:sft", reads=("model", "data"), writes="model"),
    step(
        "evaluate",
        "herd.evaluate.harness:EvaluateConfig",
        "herd.evaluate.harness:evaluate",
        reads=("model", "data"),
        writes="evaluation",
    ),
)
REPORT = step("report", "herd.commands:NoSettings", "herd.commands:write_report", writes="report")


def run(recipe: str, /, *, out: Path | None = None, resume_with_changes: bool = False, restart: bool = False) -> None:
    """Raise a herd: all stages of a recipe; those that stand are reused.

    Args:
        recipe: A recipe's name, or the path of a TOML file.
        out: Folder of the run, runs/RECIPE if not given.
        resume_with_changes: Go on with an unfinished stage though its settings differ; herd.json records the changes.
        restart: Move unfinished stages aside and begin them anew.
    """
    nodes = load_recipe(recipe, STEPS)  # a mistake in it is told before anything is written
    unfinished = how_unfinished(resume_with_changes=resume_with_changes, restart=restart)
    folder = out or Path("runs") / Path(recipe).stem
    folder.mkdir(parents=True, exist_ok=True)
    traceback_log.set(folder / "run.log")
    start = time.monotonic()
    with logged_to(folder / "run.log", f"herd {__version__}: run {recipe}"):
        nodes["report"] = Node(step=REPORT, config=NoSettings(), parents={name: name for name in nodes})
        run_recipe(nodes, folder, do=partial(run_apart, unfinished))
        print(f"wrote {folder} in {time.monotonic() - start:.0f} s")


def run_apart(unfinished: Unfinished, step: Step, config: Any, parents: Mapping[str, Path], out: Path) -> None:
    """Run one stage in a process of its own, so that none inherits the memory of those before it."""
    with telling_what_is_kept(work_of(out)):
        code = run_in_child(step.name, stage_of_run, step, config, parents, out, unfinished)
    if code:
        sys.exit(code)  # the child has told why


def stage_of_run(step: Step, config: Any, parents: Mapping[str, Path], out: Path, unfinished: Unfinished) -> int:
    """What the child does; gives its exit code."""
    log = out.parent / "run.log"
    traceback_log.set(log)

    def work() -> None:
        with logged_to(log):
            run_step(step, config, parents, out, unfinished)

    return exit_code(work, f"stage {step.name}")


def data_fetch() -> None:
    """Bring the packages with the raw data into the cache."""
    fetched = named("herd.data.fetch:fetch")()
    size = sum(pack.path.stat().st_size for pack in fetched.packs.values())
    folder = named("herd.core.files:cache_folder")()
    print(f"{len(fetched.packs)} packages, {size / 1e6:,.0f} MB, are in {folder}")


def report(run: Path, /, *, out: Path | None = None, against: tuple[Path, ...] = (), samples: bool = False) -> None:
    """Write a report about a run: one HTML page.

    Args:
        run: Folder of a run or of one stage, finished or in work.
        out: Folder to write; RUN/report if not given, beside a single stage STAGE-report.
        against: Earlier runs or stages to compare with.
        samples: Have the last model continue held-out texts, where no evaluation did.
    """
    written = named("herd.evaluate.report:report")(run, out, against=against, samples=samples)
    print(f"wrote {written / 'report.html'}")


def adopt(
    source: Path,
    out: Path,
    /,
    *,
    experts: int = 1,
    nope_every: int | None = None,
    vision: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
) -> None:
    """Bring a dense Llama home as a Llama 4 model of the same function.

    Args:
        source: Folder of a dense Llama (Hugging Face), or a GGUF file of one.
        out: Folder to write.
        experts: Routed experts of each layer: 1 is silent until trained; several do half of the feed-forward's work.
        nope_every: Take the positions from every so-many-th layer, as in Llama 4: another function, to be trained.
        vision: Add a new encoder, to be trained: tiny.
        dtype: float32 or bfloat16; what keeps every weight if not given.
        seed: Of new weights.
    """
    if out.exists():
        raise HerdError(f"{out} is there already: give another folder, or remove it first")
    settings = {"experts": experts, "nope_every": nope_every, "vision": vision, "dtype": dtype, "seed": seed}
    config = named("herd.stages.adopt:AdoptConfig")(**settings)
    print(f"wrote {named('herd.stages.adopt:adopt')(config, source, out)}")


def talker(folder: Path | None, *, yes: bool) -> Path:
    """The model to talk to: the one named, else the one that the demo raises, else the starter model."""
    if folder is not None:
        return folder
    path: Path = TALKER if TALKER.exists() else named("herd.stages.starter:starter")(yes=yes)
    return path


def chat(
    folder: Path | None = None,
    /,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    max_tokens: int = 512,
    seed: int | None = None,
    system: str | None = None,
    guess: int = 0,
    draft: Path | None = None,
    yes: bool = False,
) -> None:
    """Talk to a model in the terminal, with pictures.

    Args:
        folder: Folder of a model, or a .gguf file; runs/tiny/sft if not given, else a small model from PyPI.
        temperature: 0 takes the likeliest token; 1 draws as the model believes.
        top_p: Draw only from the likeliest tokens that together have this probability.
        top_k: Draw only from so many likeliest tokens; 0: all.
        min_p: Draw only tokens at least this share as likely as the likeliest.
        repetition_penalty: Above 1, tokens that were there become less likely.
        max_tokens: Longest answer.
        seed: Makes what is drawn repeatable.
        system: What the model is told before the conversation.
        guess: Tokens guessed ahead at most; changes no answer in fp32, in bf16 one at a near tie.
        draft: Folder of a smaller model of the same tokenizer, that guesses.
        yes: Fetch the small model without asking.
    """
    params = named("herd.engine.sampler:SamplingParams")(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_tokens=max_tokens,
        seed=seed,
    )
    named("herd.serve.terminal:chat")(talker(folder, yes=yes), params, system=system, guess=guess, draft=draft)


def generate(
    folder: Path,
    prompts: Path,
    /,
    *,
    out: Path,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: tuple[str, ...] = (),
    seed: int = 0,
    schema: Path | None = None,
    slots: int = 32,
    guess: int = 0,
    draft: Path | None = None,
    json: bool = False,
) -> None:
    """Answer a file of prompts; a kill loses nothing that is written.

    Args:
        folder: Folder of a model, or a .gguf file.
        prompts: JSON lines: {"prompt": …, "images": [PATH, …]}, {"messages": […]}, {"text": …} to go on with, or
            OpenAI's batch file.
        out: JSON lines to write; what stands there already is kept.
        max_tokens: Longest answer.
        temperature: 0 takes the likeliest token; 1 draws as the model believes.
        top_p: Draw only from the likeliest tokens that together have this probability.
        top_k: Draw only from so many likeliest tokens; 0: all.
        min_p: Draw only tokens at least this share as likely as the likeliest.
        repetition_penalty: Above 1, tokens that were there become less likely.
        stop: Texts that end an answer and are left out of it.
        seed: With the number of a prompt it gives what is drawn.
        schema: File with a JSON schema that every answer follows.
        slots: Answers under way at a time.
        guess: Tokens guessed ahead at most; changes no answer in fp32, in bf16 one at a near tie.
        draft: Folder of a smaller model of the same tokenizer, that guesses.
        json: Print one JSON object at the end, for scripts.
    """
    params = named("herd.engine.sampler:SamplingParams")(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop,
        seed=seed,
    )
    named("herd.serve.batch:run")(
        folder, prompts, out, params, schema=schema, slots=slots, guess=guess, draft=draft, as_json=json
    )


def serve(
    folder: Path | None = None,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    slots: int = 32,
    max_queued_requests: int = 128,
    guess: int = 0,
    draft: Path | None = None,
    yes: bool = False,
) -> None:
    """Serve a model to OpenAI clients and browsers.

    Args:
        folder: Folder of a model, or a .gguf file; runs/tiny/sft if not given, else a small model from PyPI.
        host: Address to listen on; 0.0.0.0 lets other machines in.
        port: Port to listen on; 0 takes a free one.
        slots: Answers that are made at a time.
        max_queued_requests: Requests that wait for a slot at most; one more is refused with 429.
        guess: Tokens guessed ahead at most; changes no answer in fp32, in bf16 one at a near tie.
        draft: Folder of a smaller model of the same tokenizer, that guesses.
        yes: Fetch the small model without asking.
    """
    named("herd.serve.api:serve")(
        talker(folder, yes=yes),
        host=host,
        port=port,
        slots=slots,
        max_queued_requests=max_queued_requests,
        guess=guess,
        draft=draft,
    )


def plan(
    model: str,
    /,
    *,
    context: int | None = None,
    quantize: Precision | None = None,
    gpus: int | None = None,
    gpu: str = "h100",
    length: int = 8192,
    batch_tokens: int = 2**24,
    tokens: int = 30 * 10**12,
    pipelined: bool = False,
    here: bool = False,
    json: bool = False,
) -> None:
    """Estimate what a model takes: parameters, bytes, and a training run on a cluster.

    Args:
        model: A preset's name, the folder of a model, or a config.json.
        context: Tokens of one request, such as 8192, 128K or 10M; as many as the model claims if not given.
        quantize: Precision that weights and cache are added up in, bf16 if not given.
        gpus: Plan a training run on so many GPUs; what follows is for it alone.
        gpu: a100, h100, h800, h200 or b200.
        length: Tokens of a document.
        batch_tokens: Tokens of an optimizer step, over all GPUs.
        tokens: Tokens of the whole run.
        pipelined: Try layouts with a pipeline too, which Herd's trainer has not.
        here: Foretell a step of training on this machine, of --batch-tokens tokens in documents of --length.
        json: Print one JSON object, for scripts.
    """
    is_path = model not in PRESETS and Path(model).exists()
    shape = named("herd.model.formats.config_json:config_from_json")(Path(model)) if is_path else preset(model)
    training = None
    if gpus is not None:
        training = named("herd.plan.training:TrainingPlan")(
            gpus=gpus,
            gpu=gpu,
            length=length,
            batch_tokens=batch_tokens,
            tokens=tokens,
            pipelined=pipelined,
        )
    machine = named("herd.bench.plan:this_machine")() if here else None
    named("herd.plan.show:show")(
        model,
        shape,
        context=context,
        quantize=quantize,
        training=training,
        here=None if machine is None else (batch_tokens, length, machine),
        as_json=json,
    )


def convert(
    source: Path,
    out: Path,
    /,
    *,
    shards: int = 8,
    dtype: str = "",
    text_only: bool = False,
    quantize: str | None = None,
    group: int | None = None,
    fit: str = "amax",
    everywhere: bool = False,
    keep_head: bool = False,
    data: Path | None = None,
    text: Path | None = None,
    max_bytes: int = 20_000,
) -> None:
    """Write a model in another format: Hugging Face, Meta, GGUF, or packed to 8 or 4 bits.

    Args:
        source: Folder of a model (Hugging Face's layout, packed or not, or Meta's), or a .gguf file.
        out: Folder to write, or a path that ends in .gguf.
        shards: Files of Meta's folder, one for each rank of tensor parallelism.
        dtype: bfloat16, float16 or float32; as stored if not given.
        text_only: Leave the vision encoder out; GGUF needs it said.
        quantize: int4, int8 or fp8: Hugging Face's layout with packed weights.
        group: int4: weights that share a scale: 128 (default), 64 or 32.
        fit: int4: amax as Meta does, or search for the scales of least error.
        everywhere: fp8: every product, not the routed experts alone.
        keep_head: Packed: leave the unembedding in bf16, as vLLM wants it.
        data: Packed: data folder whose held-out documents are measured on.
        text: Packed: text file to measure on instead.
        max_bytes: Packed: text to measure on at most, of each language or of the file.
    """
    traceback_log.set(out.with_name(out.name + ".log"))
    if quantize is None:
        module = "herd.stages.convert"
        config = named(f"{module}:ConvertConfig")(shards=shards, dtype=dtype, text_only=text_only)
        print(f"wrote {named(f'{module}:convert')(config, source, out)}")
        return
    scheme = named("herd.model.quantize:Scheme")(
        name=quantize, group=group, fit=fit, everywhere=everywhere, keep_head=keep_head
    )
    written = named("herd.evaluate.quantized:quantize_folder")(
        source, out, scheme, data=data, text=text, max_bytes=max_bytes
    )
    print((written / "README.md").read_text(encoding="utf-8"))
    print(f"wrote {written}")


def doctor(*, json: bool = False) -> None:
    """Examine this machine and say what to mend.

    Args:
        json: Print one JSON object, for scripts.
    """
    sys.exit(named("herd.doctor:doctor")(as_json=json))


STEP = {step.name: step for step in STEPS}
COMMANDS = {
    "run": command(run, example="herd run tiny", computes=True),
    "data fetch": command(data_fetch, example="herd data fetch"),
    "data build": Command(
        summary="Make a data folder: documents, pictures, chats, tokenizer",
        example="herd data build --recipe tiny --out runs/mine/data",
        does=STEP["data"],
    ),
    "vision": Command(
        summary="Make a new model whose encoder knows pictures by their names",
        example="herd vision --recipe tiny --data runs/tiny/data --out runs/mine/vision",
        does=STEP["vision"],
        computes=True,
    ),
    "pretrain": Command(
        summary="Train a model on text and pictures together",
        example="herd pretrain runs/tiny/vision --recipe tiny --data runs/tiny/data --out runs/mine/pretrain",
        does=STEP["pretrain"],
        computes=True,
    ),
    "midtrain": Command(
        summary="Let a model read longer and longer documents",
        example="herd midtrain runs/tiny/pretrain --data runs/tiny/data --out runs/mine/midtrain",
        does=STEP["midtrain"],
        computes=True,
    ),
    "sft": Command(
        summary="Teach a model to answer",
        example="herd sft runs/tiny/pretrain --recipe tiny --data runs/tiny/data --out runs/mine/sft",
        does=STEP["sft"],
        computes=True,
    ),
    "evaluate": Command(
        summary="Measure a model on what it never saw",
        example="herd evaluate runs/tiny/sft --recipe tiny --data runs/tiny/data --out runs/mine/evaluate",
        does=STEP["evaluate"],
        computes=True,
    ),
    "report": command(report, example="herd report runs/tiny"),
    "adopt": command(adopt, example="herd adopt SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2"),
    "chat": command(chat, example="herd chat runs/tiny/sft --temperature 0.7"),
    "generate": command(generate, example="herd generate runs/tiny/sft prompts.jsonl --out answers.jsonl"),
    "serve": command(serve, example="herd serve runs/tiny/sft --port 8000"),
    "plan": command(plan, example="herd plan behemoth --gpus 32768 --gpu h100"),
    **BENCHES,
    "convert": command(
        convert, example="herd convert runs/tiny/sft runs/tiny/int8 --quantize int8 --data runs/tiny/data"
    ),
    "doctor": command(doctor, example="herd doctor"),
}
