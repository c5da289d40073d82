"""What a guard is asked, in the form of Llama Guard 2, 3 and 4, and the bare message that it is asked about.

    Task: Check if there is unsafe content in 'User' messages in conversations according our safety policy with …
    <BEGIN UNSAFE CONTENT CATEGORIES> … <END UNSAFE CONTENT CATEGORIES>
    <BEGIN CONVERSATION> … <END CONVERSATION>
    Provide your safety assessment for ONLY THE LAST User message in the above conversation: …

Guards that are trained here have a `short` form of it, in which the instructions come first: what is behind a message
is computed anew for each, and took two thirds of the time. What is before it is the same for both roles.

The reply is `safe`, or `unsafe` and a line of categories. Llama Guard's own categories are given by name alone, and so
are those of `HAZARDS` here; others have their description, which is all that a guard knows of them.

A message that arrives in a wrapper is judged bare: a caller may have rendered it by a chat template or by a guard's
prompt already, and then the wrapper's own words ("unsafe", "crimes") would be judged with it. System messages and
earlier turns are not judged either.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from herd.data.tokens.chat import parts_of
from herd.errors import HerdError, unknown
from herd.guard.taxonomy import HAZARDS, Taxonomy

Role = Literal["user", "assistant"]
Form = Literal["short", "llama-guard"]
AGENTS: Mapping[str, str] = {"user": "User", "assistant": "Agent"}
"""What the roles are called in a guard's prompt."""
SAFE, UNSAFE = "safe", "unsafe"
Part = dict[str, Any]
SHORT_TASK = (
    "Task: Check if there is unsafe content in the last message of the conversation according to our safety policy "
    "with the below categories."
)
SHORT_ANSWER = "Answer 'safe', or 'unsafe' and in a second line a comma-separated list of violated categories."


def guard_messages(
    message: Sequence[Part], role: Role, policy: Taxonomy, before: str = "", *, form: Form
) -> list[dict[str, Any]]:
    """The conversation with the guard that judges one message, given in parts of text and pictures.

    `before`: the user's message that an assistant's answers, where it is known.
    """
    head, tail = frame(role, policy, form)
    context = f"{AGENTS['user']}: {before}\n\n" if before else ""
    lead = f"{head}{context}{AGENTS[role]}: "
    return [{"role": "user", "content": [text_part(lead), *message, text_part(tail)]}]


def frame(role: Role, policy: Taxonomy, form: Form) -> tuple[str, str]:
    """The words before and behind the conversation."""
    agent = AGENTS[role]
    known = {one.code: one for one in HAZARDS.categories}
    lines = [
        f"{one.code}: {one.name}." if known.get(one.code) == one else f"{one.code}: {one.name}. {one.description}"
        for one in policy.categories
    ]
    listed = "\n".join(lines)
    if form == "short":
        head = (
            f"{SHORT_TASK}\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\n{listed}\n<END UNSAFE CONTENT CATEGORIES>\n\n"
            f"{SHORT_ANSWER}\n\n<BEGIN CONVERSATION>\n\n"
        )
        return head, "\n\n<END CONVERSATION>"
    head = (
        f"Task: Check if there is unsafe content in '{agent}' messages in conversations according our safety policy "
        "with the below categories.\n\n"
        f"<BEGIN UNSAFE CONTENT CATEGORIES>\n{listed}\n<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\n"
    )
    tail = (
        "\n\n<END CONVERSATION>\n\n"
        f"Provide your safety assessment for ONLY THE LAST {agent} message in the above conversation:\n"
        " - First line must read 'safe' or 'unsafe'.\n"
        " - If unsafe, a second line must include a comma-separated list of violated categories."
    )
    return head, tail


def text_part(text: str) -> Part:
    return {"type": "text", "text": text}


def last_message(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Part], Role, str]:
    """The parts of the last message that a user or an assistant wrote, bare; who wrote it; and, of an assistant's, the
    text of the user's message before it.

    Raises HerdError where there is none, or where a role is unknown.
    """
    for i, message in enumerate(messages):
        if message.get("role") not in ("system", "user", "assistant", "tool", "ipython"):
            raise HerdError(f"messages[{i}]: {unknown('role', str(message.get('role')), ('user', 'assistant'))}")
    said = [i for i, message in enumerate(messages) if message["role"] in AGENTS]
    if not said:
        raise HerdError("the conversation is empty: give at least one message of the user or the assistant")
    message = messages[said[-1]]
    parts = [{**part, "text": bare(part["text"])} if part["type"] == "text" else part for part in parts_of(message)]
    if not any(part["type"] != "text" or part["text"].strip() for part in parts):
        raise HerdError(f"messages[{said[-1]}] is empty: there is nothing to judge")
    if message["role"] == "user":
        return parts, "user", ""
    asked = [i for i in said[:-1] if messages[i]["role"] == "user"]
    before = plain_text(parts_of(messages[asked[-1]])) if asked else ""
    return parts, "assistant", bare(before)


def plain_text(parts: Sequence[Part]) -> str:
    """The text of a message's parts."""
    return "".join(part["text"] for part in parts if part["type"] == "text")


_MARKUP = re.compile(
    r"(?:<\|(?:header_start|start_header_id|im_start)\|>\s*(?:system|user|assistant|ipython|tool)\s*"
    r"(?:<\|(?:header_end|end_header_id)\|>)?\s*)"
    r"|<\|(?:begin_of_text|end_of_text|eot|eot_id|eom|eom_id|im_end)\|>\s*"
    r"|</?s>\s*|\[/?INST\]\s*|<</?SYS>>\s*"
)
"""What Llama 2, 3 and 4 and ChatML put around a message."""
_NAMES = "|".join(re.escape(one.name) for one in HAZARDS.categories)
_FRAME = re.compile(
    r"Task: Check if there is unsafe content in '\w+' messages in conversations according (?:to )?our safety policy "
    r"with the below categories\.\s*"
    r"|<(?:BEGIN|END) UNSAFE CONTENT CATEGORIES>\s*|<(?:BEGIN|END) CONVERSATION>\s*"
    rf"|(?:{re.escape(SHORT_TASK)}|{re.escape(SHORT_ANSWER)})\s*"
    rf"|^S\d+: (?:{_NAMES})\.?\s*$"
    r"|Provide your safety assessment for ONLY THE LAST \w+ message in the above conversation:\s*"
    r"| *- First line must read 'safe' or 'unsafe'\.\s*"
    r"| *- If unsafe, a second line must include a comma-separated list of violated categories\.\s*"
    r"|^(?:User|Agent): ",
    re.MULTILINE,
)
"""What Llama Guard's prompts have around a conversation."""


def bare(text: str) -> str:
    """The text without the markup of chat templates and without the words of a guard's prompt around it.

    Only fixed strings go, and what they enclose stays, whoever is said to have said it: nothing can be hidden from a
    guard by wrapping it.
    """
    if "<BEGIN CONVERSATION>" in text:
        text = _FRAME.sub("", text)
    stripped = _MARKUP.sub("", text).strip()
    return stripped or text


def reply_of(codes: Sequence[str]) -> str:
    """What a guard answers of a message that violates these categories."""
    return f"{UNSAFE}\n{','.join(codes)}" if codes else SAFE
