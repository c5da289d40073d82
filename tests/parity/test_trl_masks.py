"""What is learnt of a chat is what TRL's `assistant_only_loss` learns, token by token, in all formats of a file."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from model_folder import random_tokenizer

from herd.cli import main
from herd.data.loading.chat_rows import TrainingChats
from herd.data.media.image import ImageProcessor
from herd.data.tokens.chat import render_messages
from herd.data.tokens.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")

CHATS = 500
TEMPLATE = (
    "{%- for message in messages %}{{- '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' }}"
    "{%- if message['role'] == 'assistant' %}{% generation %}{{- message['content'] + '<|eot|>' }}{% endgeneration %}"
    "{%- else %}{{- message['content'] + '<|eot|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|header_start|>assistant<|header_end|>\\n\\n' }}{%- endif %}"
)
"""A chat template in the manner of those that TRL trains with: the assistant's part is marked."""
UNMARKED = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
"""The same as models bring it along: there the part is found by rendering the conversation up to it."""
WORDS = ("cat", "mat", "the", "sat", "on", "Hund", "der", "ねこ", "बिल्ली", "42", "x = 1", "“yes”", "e.g.", "\n- a")


def said(place: random.Random) -> str:
    return " ".join(place.choices(WORDS, k=place.randrange(1, 20)))


def rows() -> dict[str, list[dict[str, Any]]]:
    """Rows of the four formats, with and without a system message, of one to four turns."""
    place, made = (
        random.Random(0),
        {name: list[dict[str, Any]]() for name in ("messages", "sharegpt", "alpaca", "pair")},
    )
    for number in range(CHATS):
        turns = [(said(place), f"{said(place)} {number}") for _ in range(place.randrange(1, 5))]
        system = said(place) if number % 3 == 0 else None
        flat = [("user", one) if at == 0 else ("assistant", one) for turn in turns for at, one in enumerate(turn)]
        form = list(made)[number % 4]
        if form == "messages":
            messages = [*([("system", system)] if system else []), *flat]
            made[form].append({"messages": [{"role": role, "content": text} for role, text in messages]})
        elif form == "sharegpt":
            names = {"user": "human", "assistant": "gpt", "system": "system"}
            messages = [*([("system", system)] if system else []), *flat]
            made[form].append({"conversations": [{"from": names[role], "value": text} for role, text in messages]})
        elif form == "alpaca":
            made[form].append({"instruction": turns[0][0], "input": system or "", "output": turns[0][1]})
        else:
            prompt = [{"role": role, "content": text} for role, text in flat[:-1]]
            made[form].append({"prompt": prompt, "completion": [{"role": "assistant", "content": flat[-1][1]}]})
    return made


def as_trl(form: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row as TRL takes it: Alpaca has no form of its own there."""
    if form == "alpaca":
        question = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]}
    if form == "sharegpt":
        roles = {"human": "user", "gpt": "assistant", "system": "system"}
        turns = [{"role": roles[one["from"]], "content": one["value"]} for one in row["conversations"]]
        return {"messages": turns}
    return row


@pytest.mark.slow
def test_500_chats_of_four_formats_have_the_labels_of_trl(tmp_path: Path) -> None:
    from datasets import Dataset

    tokenizer = Tokenizer(random_tokenizer()._backend, template=TEMPLATE, ids=random_tokenizer().ids)
    unmarked = Tokenizer(random_tokenizer()._backend, template=UNMARKED, ids=random_tokenizer().ids)
    tokenizer.save(tmp_path / "tokenizer")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer" / "tokenizer.json"), eos_token="<|eot|>", pad_token="<|eot|>"
    )
    theirs.chat_template = TEMPLATE
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, eos_token_id=theirs.eos_token_id,
        )
    )  # fmt: skip
    checked = 0
    for form, own in rows().items():
        (tmp_path / f"{form}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
        out = tmp_path / f"{form}-data"
        args = ["data", "build", "--from", str(tmp_path / f"{form}.jsonl"), "--out", str(out), "--vocab-size", "300"]
        assert main([*args, "--heldout-pairs", "1e-9"]) == 0
        chats = TrainingChats(out)
        assert len(chats) == len(own)
        trainer = trl.SFTTrainer(
            model=model,
            args=trl.SFTConfig(
                output_dir=str(tmp_path / "trl"), assistant_only_loss=True, max_length=None, report_to=[], use_cpu=True,
                completion_only_loss=False, packing=False,
            ),
            train_dataset=Dataset.from_list([as_trl(form, row) for row in own]),
            processing_class=theirs,
        )  # fmt: skip
        for chat, labelled in zip(chats, trainer.train_dataset, strict=True):
            ours = render_messages(
                tokenizer, ImageProcessor(None), chat.messages, tools=chat.tools, add_generation_prompt=False
            )
            assert ours.ids == list(labelled["input_ids"]), form
            labels = [token if learnt else -100 for token, learnt in zip(ours.ids, ours.learnt, strict=True)]
            assert labels == list(labelled["labels"]), form
            again = render_messages(unmarked, ImageProcessor(None), chat.messages, add_generation_prompt=False)
            assert (again.ids, again.learnt) == (ours.ids, ours.learnt), form
            checked += 1
    assert checked == CHATS
