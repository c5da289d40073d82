"""A request's messages as a conversation, with pictures and videos decoded. Nothing is fetched."""

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any

from herd.data.media.image import read_picture
from herd.data.media.video import read_video, video_part
from herd.data.tokens.tool_calls import read_arguments
from herd.engine.conversation import Conversation
from herd.errors import HerdError
from herd.serve.message_schema import ImagePart, Message, RefusalPart, TextPart, VideoPart
from herd.serve.refusal import ApiError
from herd.serve.schema import ChatRequest

MAX_MEDIA_BYTES = 20 * 2**20
"""Most bytes of one picture or video, after base64."""


def read_conversation(request: ChatRequest, cancelled: Callable[[], bool] = lambda: False) -> Conversation:
    """The conversation that a request sends, pictures decoded; ApiError names the part that is at fault.

    Once `cancelled()`, decoding ends with the next picture or frame, and HerdError is raised.
    """
    conversation = Conversation(tools=request.offered_tools)
    for i, message in enumerate(request.messages):
        here = f"messages[{i}]"
        made = _message(message, here, cancelled)
        if message.tool_call_id is not None:
            try:
                conversation.add_tool_result(message.tool_call_id, made["content"])
            except HerdError as error:
                raise ApiError(f"{here}: {error}", param=f"{here}.tool_call_id") from None
            continue
        if pending := conversation.pending_calls:
            raise ApiError(f"{here}: the call {pending[0]!r} before it has no message with its result", param=here)
        conversation.add(made)
        ids = [call.id for call in message.tool_calls or ()]
        if len(set(ids)) < len(ids):
            raise ApiError(f"{here}: two calls have one id", param=f"{here}.tool_calls")
    if pending := conversation.pending_calls:
        raise ApiError(f"messages: the call {pending[0]!r} has no message with its result", param="messages")
    return conversation


def _message(message: Message, here: str, cancelled: Callable[[], bool]) -> dict[str, Any]:
    role = {"developer": "system", "tool": "ipython"}.get(message.role, message.role)
    made: dict[str, Any] = {"role": role, "content": message.content or message.refusal or ""}
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.id,
                "function": {"name": call.function.name, "arguments": read_arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    if isinstance(message.content, list) and message.content:
        made["content"] = [
            _part(part, role, f"{here}.content[{j}]", cancelled) for j, part in enumerate(message.content)
        ]
    return made


def _part(
    part: TextPart | RefusalPart | ImagePart | VideoPart, role: str, here: str, cancelled: Callable[[], bool]
) -> dict[str, Any]:
    if cancelled():
        raise HerdError("the client is no longer waiting for this request")
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, RefusalPart):
        return {"type": "text", "text": part.refusal}
    if role != "user":
        raise ApiError(f"{here}: a message of role {role!r} cannot hold a picture", param=here)
    try:
        if isinstance(part, VideoPart):
            return video_part(read_video(data_url(part.video_url.url, "video"), cancelled=cancelled))
        picture = {"type": "image", "image": read_picture(data_url(part.image_url.url))}
        return {**picture, "max_tiles": 1} if part.image_url.detail == "low" else picture
    except HerdError as error:
        raise ApiError(f"{here}: {error}", param=f"{here}.{part.type}", code="invalid_image") from None


def data_url(url: str, what: str = "picture") -> bytes:
    """The bytes in a base64 `data:` URL. Raises HerdError for anything else: the server fetches nothing."""
    if re.match(r"\s*[a-z][a-z0-9+.-]*://", url, re.IGNORECASE):
        raise HerdError(
            f"{url[:60]!r} would have to be fetched, which this server does not do: send the {what} as a data: URL"
        )
    match = re.match(r"data:[^,]*;base64,", url, re.IGNORECASE)
    if not match:
        raise HerdError(f"{url[:30]!r} is not a base64 data: URL, like 'data:image/png;base64,iVBOR…'")
    # Some clients leave the padding out, or write the two marks as in addresses.
    encoded = re.sub(r"\s", "", url[match.end() :]).rstrip("=").replace("-", "+").replace("_", "/")
    if len(encoded) > MAX_MEDIA_BYTES * 4 // 3 + 4:
        raise HerdError(f"the {what} has more than {MAX_MEDIA_BYTES // 2**20} MiB: make it smaller")
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise HerdError(f"the {what}'s base64 is broken ({error}): encode it again") from None
    if not data:
        raise HerdError(f"the {what} is empty: the data: URL ends after 'base64,'")
    return data
