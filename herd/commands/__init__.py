"""The table of commands. Nothing heavy is imported before a command is called.

A command is a function whose signature is its usage (tyro reads it): parameters before the `/` are positional, the
others are options; its docstring is its help. The commands of the stages come from `STAGES`, the table that `herd run`
follows too.
"""

from herd.commands.answers import chat, generate, serve
from herd.commands.bench import BENCHES
from herd.commands.channels import channels_serve, channels_simulate, channels_status
from herd.commands.command import Command, command
from herd.commands.data_view import data_show, data_stats
from herd.commands.folders import adopt, convert, data_fetch, data_pairs, merge, report
from herd.commands.guard import (
    guard_attack,
    guard_balance,
    guard_check,
    guard_check_prompt,
    guard_filter,
    guard_scan,
    guard_train_prompt,
)
from herd.commands.machine import doctor, plan
from herd.commands.run import RUN
from herd.commands.single import stage_command
from herd.commands.stages import STAGES

COMMANDS: dict[str, Command] = {
    "run": RUN,
    "data fetch": command(data_fetch, example="herd data fetch"),
    "data show": command(data_show, example="herd data show runs/tiny/data --table chats --num 2"),
    "data stats": command(data_stats, example="herd data stats runs/tiny/data"),
    "data pairs": command(data_pairs, example="herd data pairs runs/mine/rl --out pairs.jsonl"),
    **{kind.command: stage_command(kind) for kind in STAGES.values() if kind.command},
    "report": command(report, example="herd report runs/tiny"),
    "adopt": command(adopt, example="herd adopt SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2"),
    "merge": command(merge, example="herd merge runs/mine/lora --out runs/mine/merged"),
    "chat": command(chat, example="herd chat runs/tiny/sft --temperature 0.7", on_device=True),
    "generate": command(
        generate, example="herd generate runs/tiny/sft prompts.jsonl --out answers.jsonl", on_device=True
    ),
    "serve": command(serve, example="herd serve runs/tiny/sft --port 8000", on_device=True),
    "channels serve": command(
        channels_serve, example="herd channels serve channels.toml runs/tiny/sft --port 8080", on_device=True
    ),
    "channels simulate": command(
        channels_simulate, example="herd channels simulate runs/tiny/sft --channel whatsapp", on_device=True
    ),
    "channels status": command(channels_status, example="herd channels status channels.toml"),
    "guard attack": command(guard_attack, example="herd guard attack runs/tiny/sft --out attack", on_device=True),
    "guard balance": command(
        guard_balance, example="herd guard balance runs/tiny/sft --out runs/tiny/balance", on_device=True
    ),
    "guard scan": command(guard_scan, example="herd guard scan answer.md --json"),
    "guard check": command(
        guard_check, example='herd guard check runs/mine/guard "How do I bake bread?"', on_device=True
    ),
    "guard filter": command(
        guard_filter, example="herd guard filter runs/mine/guard chats.jsonl --out safe.jsonl", on_device=True
    ),
    "guard train-prompt": command(guard_train_prompt, example="herd guard train-prompt --out runs/mine/prompt-guard"),
    "guard check-prompt": command(
        guard_check_prompt, example="herd guard check-prompt runs/mine/prompt-guard --file page.html"
    ),
    "plan": command(plan, example="herd plan behemoth --gpus 32768 --gpu h100"),
    **BENCHES,
    "convert": command(
        convert, example="herd convert runs/tiny/sft runs/tiny/int8 --quantize int8 --data runs/tiny/data"
    ),
    "doctor": command(doctor, example="herd doctor"),
}
