"""The loss on the assistant's turns of held-out chats: what fine-tuning lowers. Chats with pictures are not read."""

from typing import Any

import numpy as np

from herd.data.tasks.chats import Chat
from herd.data.tokens.chat import render_messages
from herd.errors import HerdError
from herd.evaluate.bits import CONTEXT
from herd.evaluate.evaluation import Evaluation
from herd.evaluate.questions import has_media

LOSS_RULE = (
    "Mean loss of the tokens that fine-tuning learns, in nats: the assistant's turns of held-out chats without "
    f"pictures, of each kind the first by a hash of the id. A longer chat is read in windows of {CONTEXT} tokens that "
    "overlap by half."
)


def loss_chats(run: Evaluation) -> list[Chat]:
    """The held-out chats that are read: of each kind as many as are asked."""
    chosen: dict[str, list[Chat]] = {}
    for chat in run.heldout_chats:
        if not has_media(chat.messages) and chat.messages[-1]["role"] == "assistant":
            chosen.setdefault(chat.kind, []).append(chat)
    kinds = run.cfg.kinds or tuple(chosen)
    return [chat for kind in kinds for chat in chosen.get(kind, [])[: run.cfg.chats]]


def chat_loss(run: Evaluation) -> dict[str, Any]:
    """`nats` of a token that the assistant says, over all `tokens` of the `chats`; None if the model's chat format
    refuses all of them."""
    from herd.engine.score import token_losses

    ids, learnt, refused = list[list[int]](), list[np.ndarray](), 0
    for chat in loss_chats(run):
        try:
            rendered = render_messages(
                run.model.tokenizer, run.model.processor, chat.messages, add_generation_prompt=False
            )
        except HerdError:
            refused += 1
            continue
        begin = int(rendered.ids[0] == run.model.config.special.bos)  # which is put before again
        ids.append(rendered.ids[begin:])
        learnt.append(np.array(rendered.learnt[begin:]))
    losses = token_losses(run.model, ids, context=min(CONTEXT, run.model.config.max_positions))
    kept = [loss[mask] for loss, mask in zip(losses, learnt, strict=True)]
    nats = np.concatenate(kept) if kept else np.zeros(0)
    return {
        "rule": LOSS_RULE,
        "chats": len(ids),
        "tokens": len(nats),
        "nats": float(nats.mean()) if len(nats) else None,
        "left_out": {f"loss of {refused:,} chats": "the model's chat format refuses them"} if refused else {},
    }
