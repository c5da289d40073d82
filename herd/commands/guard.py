"""Commands of the guards: `herd guard check` and others; `herd guard train` is a stage."""

import os
from pathlib import Path
from typing import Literal

from herd.commands.command import load_object
from herd.config.attack import AttackConfig

UNSAFE_EXIT = 3
"""Exit code where something unsafe was found: not that of a failure."""
UNJUDGED_EXIT = 4
"""Exit code where nothing can be said, as that of a scan that did not happen."""
ATTACK = AttackConfig()


def guard_check(
    guard: Path,
    message: str | None = None,
    /,
    *,
    file: Path | None = None,
    role: Literal["user", "assistant"] = "user",
    images: tuple[Path, ...] = (),
    policy: Path | None = None,
    exclude: tuple[str, ...] = (),
    threshold: float | None = None,
    json: bool = False,
) -> None:
    """Judge messages with a guard; exit code 3 if one is unsafe.

    Args:
        guard: Folder of a guard, of herd guard train or in the form of Llama Guard.
        message: What is judged; - reads it from the input.
        file: JSON lines to judge instead: {"messages": […]}, {"prompt": …, "images": […]} or a text each.
        role: Who said it, where no message says that.
        images: Pictures of the message.
        policy: Policy file (TOML) with categories of yours.
        exclude: Categories that are no violation, such as S12.
        threshold: Score from which on a message is unsafe; as the guard was trained if not given.
        json: Print a JSON object for each, for scripts.
    """
    unsafe = load_object("herd.guard.check:check")(
        guard, message, role=role, file=file, images=images, policy=policy, exclude=exclude, threshold=threshold,
        as_json=json,
    )  # fmt: skip
    if unsafe:
        raise SystemExit(UNSAFE_EXIT)


def guard_balance(
    models: tuple[str, ...],
    /,
    *,
    out: Path,
    pairs: Path | None = None,
    num_pairs: int = 0,
    judge: str = "",
    labels: Path | None = None,
    max_declined: float = 0.02,
    max_unequal: float = 0.01,
    max_tokens: int = 256,
    temperature: float = 0.0,
    timeout_s: float = 60.0,
    at_once: int = 8,
    seed: int = 0,
    server_model: str = "",
    api_key_variable: str = "",
    json: bool = False,
) -> None:
    """Measure refusals and even-handedness of models on pairs of prompts; re-run the same command to resume.

    Args:
        models: Folders of models, or addresses of servers (http://HOST:PORT/v1).
        out: Folder to write.
        pairs: CSV file with topic, a and b; 1,350 generated pairs about everyday policies if not given.
        num_pairs: Ask the first so many pairs only.
        judge: Folder or address of a model that judges the replies; rules for English if not given.
        labels: CSV file with prompt, reply and declined (1 or 0) by people, to measure the judge on.
        max_declined: Claim to test: a smaller share of the prompts is declined.
        max_unequal: Claim to test: a smaller share of the pairs has one side declined and not the other.
        max_tokens: Longest answer, in tokens.
        temperature: 0 draws the likeliest token.
        timeout_s: Time for one answer.
        at_once: Prompts that are asked at a time.
        seed: Of the answers.
        server_model: Name to ask servers for; the first that they list if not given.
        api_key_variable: Environment variable with the key that is sent to the servers.
        json: Print results.json, for scripts.
    """
    place = "herd.guard.balance"
    config = load_object(f"{place}:BalanceConfig")(
        models=models, pairs=str(pairs or ""), num_pairs=num_pairs, judge=judge, labels=str(labels or ""),
        max_declined=max_declined, max_unequal=max_unequal, seed=seed,
    )  # fmt: skip
    asking = load_object("herd.guard.target:AskConfig")(
        max_tokens=max_tokens, temperature=temperature, timeout_s=timeout_s
    )
    key = os.environ.get(api_key_variable, "") if api_key_variable else ""
    written = load_object(f"{place}:balance")(
        config, out, asking=asking, server_model=server_model, api_key=key, at_once=at_once
    )
    results = load_object("herd.core.files:read_json")(written / "results.json")
    if json:
        print(load_object("json:dumps")(results))
        return
    print("\n".join(load_object(f"{place}:table")(results)))
    print(f"wrote {written}")


def guard_filter(
    guard: Path, source: Path, /, *, out: Path, policy: Path | None = None, keep_refused: bool = True
) -> None:
    """Remove what is unsafe from training data.

    Args:
        guard: Folder of a guard.
        source: JSON lines: {"text": …} or {"messages": […]}.
        out: JSON lines to write; what is removed goes to a file beside it, with the categories.
        policy: Policy file (TOML) with categories of yours.
        keep_refused: Keep chats in which an unsafe request gets a safe answer.
    """
    load_object("herd.guard.filter:filter_command")(guard, source, out, policy=policy, keep_refused=keep_refused)


def guard_attack(
    target: str,
    /,
    *,
    out: Path,
    goals: Path | None = None,
    attacker: str = "",
    judge: str = "",
    target_model: str = "",
    attacker_model: str = "",
    judge_model: str = "",
    config: AttackConfig = ATTACK,
    json: bool = False,
) -> None:
    """Attack a model in conversations (GOAT) and report how often it gives in; re-run the same command to resume.

    Exit code 4 if no conversation could be judged.

    Keys for servers are read from HERD_TARGET_KEY, HERD_ATTACKER_KEY and HERD_JUDGE_KEY.

    Args:
        target: Folder of a model, or the URL of a server with OpenAI's chat completions.
        out: Folder to write: transcripts, results and a page.
        goals: JSONL or CSV with goal and category, perhaps id and sentence; embedded goals if not given.
        attacker: Folder or URL of the model that attacks; fixed wordings if not given.
        judge: Folder or URL of the model that judges; a rule for goals with a sentence if not given.
        target_model: Name of the target's model at its server; the first that it lists if not given.
        attacker_model: The same for the attacker.
        judge_model: The same for the judge.
        config: How the target is attacked.
        json: Print the results as one JSON object, for scripts.
    """
    results = load_object("herd.guard.red_team.command:attack_command")(
        target,
        out,
        config,
        goals=goals,
        attacker=attacker,
        judge=judge,
        models={"target": target_model, "attacker": attacker_model, "judge": judge_model},
        keys={who: os.environ.get(f"HERD_{who.upper()}_KEY", "") for who in ("target", "attacker", "judge")},
    )
    page = load_object("herd.evaluate.attack_report:write_page")(out)
    if json:
        print(load_object("json:dumps")(results, ensure_ascii=False))
    else:
        for line in load_object("herd.guard.red_team.command:summary")(results):
            print(line)
        print(f"wrote {page}")
    if results["outcomes"]["could not judge"] == results["conversations"]:
        raise SystemExit(UNJUDGED_EXIT)


def guard_train_prompt(
    data: tuple[str, ...] = (),
    /,
    *,
    out: Path,
    num_epochs: int = 6,
    seed: int = 0,
    reader: bool = True,
    onnx: bool = False,
) -> None:
    """Train a guard against prompt injections and jailbreaks.

    Args:
        data: JSONL or CSV files with the columns text, label (1 or attack, 0 or benign) and perhaps group; the word
            embedded stands for the embedded sets, which are taken if no file is given.
        out: Folder to write.
        num_epochs: Passes of the n-grams over the texts; the reader makes one.
        seed: Of the first weights and of the order of the texts.
        reader: Fine-tune a small pre-trained encoder too (fetched once, 84 MB), which reads what is most suspicious.
        onnx: Write OUT.onnx, and OUT.reader.onnx, too.
    """
    train = load_object("herd.guard.prompt_guard.commands:train")
    print(f"wrote {train(data, out, num_epochs=num_epochs, seed=seed, onnx=onnx, reader=reader)}")


def guard_check_prompt(guard: Path, text: str = "-", /, *, file: Path | None = None, json: bool = False) -> None:
    """Check a text of any length for a prompt injection or jailbreak; exit code 3 if it is flagged.

    Args:
        guard: Folder of a prompt guard.
        text: What is checked; - reads it from the input.
        file: A file to check instead, as a whole.
        json: Print a JSON object, for scripts.
    """
    if load_object("herd.guard.prompt_guard.commands:check")(guard, text, file=file, as_json=json):
        raise SystemExit(UNSAFE_EXIT)


def guard_scan(
    path: str,
    /,
    *,
    language: str = "",
    scanners: tuple[Literal["rules", "semgrep", "bandit"], ...] = (),
    strict: bool = False,
    json: bool = False,
) -> None:
    """Scan code, or the code in an answer, for weaknesses; exit code 3 if it is insecure, 4 if it was not scanned.

    Args:
        path: File or folder; - reads a model's answer, or code, from the input.
        language: What it is written in; found by names of files and fences, and by looking, if not given.
        scanners: Scanners to use; rules of our own, and semgrep and bandit where they are installed, if not given.
        strict: Count what depends on its use as insecure too, such as weak random numbers.
        json: Print one JSON object, for scripts.
    """
    code = load_object("herd.guard.code.command:scan")(
        path, language=language, scanners=scanners, strict=strict, as_json=json
    )
    if code:
        raise SystemExit(code)
