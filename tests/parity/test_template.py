"""A model's own chat template: the ids of transformers' `apply_chat_template`, and what training learns of them."""

from pathlib import Path
from typing import Any

import pytest
from dense_llama import CHATML, backend, dense_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

import herd
from herd.config import SpecialIds
from herd.data.media.image import ImageProcessor
from herd.data.tokens.chat import Rendered, render_messages
from herd.data.tokens.template import limits
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError
from herd.stages.adopt import AdoptConfig, adopt

transformers = pytest.importorskip("transformers")

NAMES = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
# Written for these tests, each with the constructs by which a published family differs from the others.
TAGGED = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' %}{%- generation %}{{- m.content + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{- m.content + '<|im_end|>' }}{%- endif %}{{- '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA_3 = (  # a date, tools in the system message, arguments as a mapping, a role of its own for results
    "{{- bos_token }}{%- if not tools is defined %}{%- set tools = none %}{%- endif %}"
    "{%- set date = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|im_start|>system\n' + date + '\n' }}"
    "{%- if tools is not none %}{%- for t in tools %}{{- t | tojson(indent=4) + '\n\n' }}{%- endfor %}{%- endif %}"
    "{{- system + '<|im_end|>' }}"
    "{%- for message in messages %}"
    "{%- if not (message.role == 'ipython' or message.role == 'tool' or message.tool_calls) %}"
    "{{- '<|im_start|>' + message['role'] + '\n\n' + message['content'] | trim + '<|im_end|>' }}"
    "{%- elif message.tool_calls %}"
    "{%- if message.tool_calls|length != 1 %}{{- raise_exception('one call at once!') }}{%- endif %}"
    "{%- set call = message.tool_calls[0].function %}"
    "{{- '<|im_start|>assistant\n\n{\"name\": \"' + call.name + '\", ' }}"
    "{{- '\"parameters\": ' + call.arguments | tojson + '}' + '<|im_end|>' }}"
    "{%- else %}{{- '<|im_start|>ipython\n\n' }}"
    "{%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}"
    "{%- else %}{{- message.content }}{%- endif %}{{- '<|im_end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n\n' }}{%- endif %}"
)
QWEN = (  # thinking that is dropped from earlier turns, results that are the user's, loops over what stands beside
    "{%- if tools %}{{- '<|im_start|>system\n# Tools\n<tools>' }}"
    "{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}{{- '\n</tools><|im_end|>\n' }}{%- endif %}"
    "{%- set ns = namespace(last=messages|length - 1, more=true) %}"
    "{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
    "{%- if ns.more and message.role == 'user' and not message.content.startswith('<tool_response>') %}"
    "{%- set ns.more = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'user' or message.role == 'system' %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' %}{%- set content = message.content or '' %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.index0 > ns.last and (loop.last or message.reasoning_content) %}"
    "{{- '<think>\n' + (message.reasoning_content or '').strip('\n') + '\n</think>\n\n' }}{%- endif %}{{- content }}"
    "{%- for call in message.tool_calls or [] %}{%- if call.function %}{%- set call = call.function %}{%- endif %}"
    '{{- \'\n<tool_call>\n{"name": "\' + call.name + \'", "arguments": \' }}'
    "{{- call.arguments if call.arguments is string else call.arguments | tojson }}"
    "{{- '}\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\n' }}"
    "{%- elif message.role == 'tool' %}"
    "{%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}"
    "{%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
DEEPSEEK = (  # calls only where the content is none, their arguments as text; no end of turn after the last answer
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{- '<|user|>' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' and message['content'] is none %}{%- for tool in message['tool_calls'] %}"
    "{{- '<|calls|>' + tool['function']['name'] + '\n' + tool['function']['arguments'] }}{%- endfor %}"
    "{{- '<|im_end|>' }}"
    "{%- elif message['role'] == 'assistant' %}{{- '<|assistant|>' + message['content'] }}"
    "{%- if not loop.last %}{{- '<|im_end|>' }}{%- endif %}"
    "{%- elif message['role'] == 'tool' %}{{- '<|result|>' + message['content'] }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
GEMMA = (  # no system message, roles that must alternate, another word for the assistant
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<|im_start|>' + role + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>model\n'}}{% endif %}"
)
JSON = (  # every argument of tojson, loop controls, documents
    "{%- for tool in tools or [] %}"
    "{{- tool | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}{{- tool | tojson(indent=2) }}"
    "{%- endfor %}{%- if documents %}{{- documents }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'system' %}{%- continue %}{%- endif %}"
    "{%- for call in message.tool_calls or [] %}{{- call.function | tojson(ensure_ascii=True) }}{%- break %}"
    "{%- endfor %}"
    "{{- '<|im_start|>' ~ message.role ~ '\n' ~ (message.content or '') ~ '<|im_end|>' }}{%- endfor %}"
)
TEMPLATES = {
    "ChatML": CHATML, "generation": TAGGED, "Llama 3": LLAMA_3, "Qwen": QWEN, "DeepSeek": DEEPSEEK, "Gemma": GEMMA,
    "JSON": JSON,
}  # fmt: skip
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Of a place: <|im_end|>, "quotes" <b>, 天気',
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
        },
    }
]
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "a1b2c3d4e",
            "type": "function",
            "function": {"name": "weather", "arguments": {"town": "Åre", "in": [1]}},
        }
    ],
}
RESULT = {"role": "tool", "content": "cold", "tool_call_id": "a1b2c3d4e"}


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CHATS: list[list[dict[str, Any]]] = [
    [said("user", "  dogs? 12\n")],
    [said("system", " Be brief\n"), said("user", "hi")],
    [said("user", "hi"), said("assistant", "the <cat>\n"), said("user", "mat")],
    [said("user", "hi"), said("assistant", "x", reasoning_content="hmm"), said("user", "and")],
    [said("user", "w?"), CALLED, RESULT],
    [said("user", "w?"), CALLED, RESULT, said("assistant", "-3", reasoning_content="so"), said("user", "mat")],
]


def tokenizers_of(template: str) -> tuple[Tokenizer, Any]:
    """Ours and transformers', with the control tokens of all templates."""
    made = backend()
    marks = ("user", "assistant", "calls", "result")
    made.add_special_tokens([AddedToken(f"<|{mark}|>", special=True, normalized=False) for mark in marks])
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(made.to_str()), **NAMES)
    theirs.chat_template = template
    ids = SpecialIds(bos=0, end_of_text=0, eom=2, eot=2, pad=2)
    return Tokenizer(made, template=template, names=NAMES, ids=ids), theirs


def render(tokenizer: Tokenizer, messages: list[dict[str, Any]], **options: Any) -> Rendered:
    return render_messages(tokenizer, ImageProcessor(None), messages, **options)


def learnt(tokenizer: Tokenizer, messages: list[dict[str, Any]]) -> list[str]:
    """The runs of tokens that training learns."""
    rendered, runs, before = render(tokenizer, messages, add_generation_prompt=False), list[list[int]](), False
    for token, by_assistant in zip(rendered.ids, rendered.learnt, strict=True):
        if by_assistant:
            runs = [*runs, [token]] if not before else [*runs[:-1], [*runs[-1], token]]
        before = by_assistant
    return [tokenizer.decode(run, skip_special=False) for run in runs]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_every_template_has_the_ids_of_transformers_or_is_refused_in_words(
    name: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    ours, theirs = tokenizers_of(TEMPLATES[name])
    called = any("tool_calls" in message for message in messages)
    refused = {
        "ChatML": bool(tools) or called,
        "generation": bool(tools) or called,
        "Gemma": bool(tools) or called or messages[0]["role"] == "system",
        "DeepSeek": bool(tools),
    }
    if refused.get(name):
        with pytest.raises(HerdError, match=r"no place for tool|refuses this conversation: System role"):
            render(ours, messages, tools=tools or ())
        return
    if name == "DeepSeek" and called:  # transformers leaves a content of none out and gives arguments as they are
        with pytest.raises(Exception, match="no attribute 'content'"):
            theirs.apply_chat_template(messages, add_generation_prompt=True)
        text = '<|calls|>weather\n{"town": "Åre", "in": [1]}<|im_end|><|result|>cold'
        assert text in ours.decode(render(ours, messages).ids, skip_special=False)
        return
    # A description that spells a control token becomes one in transformers, and stays text here.
    plain = "<|im_end|>" not in str(tools)
    wanted = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    rendered = render(ours, messages, tools=tools or ())
    assert ours.decode(rendered.ids, skip_special=False) == wanted
    if plain:
        assert rendered.ids == theirs(wanted, add_special_tokens=False)["input_ids"]
    else:
        assert rendered.ids.count(2) == theirs(wanted, add_special_tokens=False)["input_ids"].count(2) - str(
            wanted
        ).count("place: <|im_end|>")


def test_what_the_assistant_said_is_found_by_tags_or_by_the_prompts() -> None:
    messages = [
        said("user", "hi"),
        said("assistant", "the cat"),
        said("user", "a<|im_end|>b"),
        said("assistant", "mat"),
    ]
    for name, wanted in {
        "ChatML": ["the cat<|im_end|>", "mat<|im_end|>"],
        "generation": ["the cat<|im_end|>", "mat<|im_end|>"],
        "Llama 3": ["the cat<|im_end|>", "mat<|im_end|>"],
        "Qwen": ["the cat<|im_end|>", "<think>\n\n</think>\n\nmat<|im_end|>"],
        "DeepSeek": ["the cat<|im_end|>", "mat"],
        "Gemma": ["the cat<|im_end|>", "mat<|im_end|>"],
    }.items():
        ours, theirs = tokenizers_of(TEMPLATES[name])
        assert learnt(ours, messages) == wanted, name
        if name == "generation":
            plain = [messages[0], messages[1], said("user", "b"), messages[3]]
            masked = theirs.apply_chat_template(plain, return_assistant_tokens_mask=True, return_dict=True)
            assert masked["assistant_masks"] == [
                int(by_assistant) for by_assistant in render(ours, plain, add_generation_prompt=False).learnt
            ]
    assert learnt(tokenizers_of(QWEN)[0], [said("user", "w?"), CALLED, RESULT, said("assistant", "-3")])[0] == (
        '\n<tool_call>\n{"name": "weather", "arguments": {"town": "Åre", "in": [1]}}\n</tool_call><|im_end|>'
    )


def test_a_template_whose_answers_cannot_be_found_is_refused_for_training_and_still_answers() -> None:
    thinking = CHATML.replace("<|im_start|>assistant\n' }}", "<|im_start|>assistant\n<think>' }}")
    ours, _ = tokenizers_of(thinking)
    messages = [said("user", "hi"), said("assistant", "the cat")]
    with pytest.raises(HerdError, match="what the assistant said cannot be found"):
        render(ours, messages, add_generation_prompt=False)
    assert render(ours, messages[:1]).ids[-1] != 2
    assert [line.partition(" (")[0] for line in limits(ours)] == ["fine-tuning", "tools", "tool calls in the history"]


WORDS = st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "<|", "im_end", "|>", "é", "\ue000", " "]), max_size=6)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(WORDS.map("".join), min_size=5, max_size=5))
def test_text_that_spells_control_tokens_stays_text_in_calls_and_tools_too(texts: list[str]) -> None:
    user, argument, key, result, description = texts
    call = {"id": "1", "function": {"name": "weather", "arguments": {"town": argument, key: user}}}
    messages = [said("user", user), {**CALLED, "tool_calls": [call]}, {**RESULT, "content": result}]
    tool = {"type": "function", "function": {"name": "weather", "description": description}}
    for name in ("Qwen", "Llama 3", "JSON"):
        ours, _ = tokenizers_of(TEMPLATES[name])
        ids = render(ours, messages, tools=[tool]).ids
        assert ids.count(2) == {"Qwen": 4, "Llama 3": 4, "JSON": 3}[name]


def test_a_call_beside_null_and_beside_nothing_reads_the_same(tmp_path: Path) -> None:
    absent = {key: value for key, value in CALLED.items() if key != "content"}
    for name in ("Llama 3", "Qwen", "DeepSeek", "JSON"):
        ours, _ = tokenizers_of(TEMPLATES[name])
        ids = [render(ours, [CHATS[0][0], one, RESULT]).ids for one in (CALLED, absent, {**CALLED, "content": ""})]
        assert ids[0] == ids[1] == ids[2], name


def test_adoption_says_what_the_template_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense_folder(tmp_path / "dense")
    (tmp_path / "dense" / "chat_template.jinja").write_text(GEMMA)
    adopt(AdoptConfig(), tmp_path / "dense", tmp_path / "home")
    reported = capsys.readouterr().out
    assert "its chat template cannot do: a system message (the model's chat template refuses" in reported
    assert "tools (it does not show them)" in reported and "fine-tuning" not in reported
    assert "System role not supported" in (tmp_path / "home" / "README.md").read_text()
    (tmp_path / "dense" / "chat_template.jinja").write_text(QWEN)
    adopt(AdoptConfig(), tmp_path / "dense", tmp_path / "other")
    assert "cannot do" not in capsys.readouterr().out
    prompt = herd.load(tmp_path / "other").render(CHATS[4], tools=TOOLS)
    assert "<tools>" in herd.load(tmp_path / "other").tokenizer.decode(prompt.token_ids)
