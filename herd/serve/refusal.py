"""A refusal in the shape of OpenAI or Anthropic, and objects of a request in which no field is dropped in silence."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import JSONResponse

from herd.errors import unknown

ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
MESSAGES = "/v1/messages"
"""Anthropic's path: what is refused below it has Anthropic's shape."""


def error_response(error: "ApiError", path: str) -> JSONResponse:
    """The refusal of a request for `path`."""
    body = error.anthropic_body if path == MESSAGES or path.startswith(f"{MESSAGES}/") else error.body
    return JSONResponse(body, status_code=error.status, headers=error.headers)


class ApiError(Exception):
    """A refusal in OpenAI's shape. `param` is the field at fault, as `messages[0].content`."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code, self.headers = message, status, param, code, headers

    @property
    def anthropic_body(self) -> dict[str, Any]:
        """The same in Anthropic's shape, which has no field for `param`: the message names it."""
        kind = ANTHROPIC_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    @property
    def body(self) -> dict[str, Any]:
        kind = "requests" if self.status == 429 else "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Object(BaseModel):
    """A part of a request: each field is honoured, ignored or refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    ignored: ClassVar[frozenset[str]] = frozenset()
    """Fields that are accepted and change nothing."""
    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields that cannot be honoured, with the values that ask for nothing; null always does."""

    @classmethod
    def known_fields(cls) -> frozenset[str]:
        """All that a request may name."""
        names = {field.alias or name for name, field in cls.model_fields.items()}
        return frozenset({*names, *cls.ignored, *cls.unsupported})

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, fields: Any) -> Any:
        return _without(fields, cls.unsupported, cls.ignored)


def _without(fields: Any, unsupported: Mapping[str, tuple[Any, ...]], ignored: frozenset[str]) -> Any:
    """`fields` less those that ask for nothing; one that asks for something is an error."""
    if not isinstance(fields, dict):
        return fields
    for name, neutral in unsupported.items():
        value = fields.get(name)
        # True == 1 in Python, but `"n": true` is no way to ask for one choice.
        if value is not None and not any(
            value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral
        ):
            text = repr(value) if len(repr(value)) <= 40 else repr(value)[:40] + "…"
            raise PydanticCustomError(
                "unsupported", "{name}={text} is not supported by this server", {"name": name, "text": text}
            )
    return {name: value for name, value in fields.items() if name not in unsupported and name not in ignored}


def missing_field(name: str, message: str) -> PydanticCustomError:
    """That the field `name` is missing or misplaced."""
    return PydanticCustomError("missing_field", "{message}", {"name": name, "message": message})


def validation_error(errors: list[Any], request: type[Object]) -> ApiError:
    """The first of pydantic's errors over a request of this kind, in OpenAI's shape."""
    error = errors[0]
    kind, location = error["type"], [step for step in error["loc"] if step != "body"]
    if kind == "json_invalid":
        where = f"{error['ctx']['error']} (character {location[0]})"
        return ApiError(f"the body is not valid JSON: {where}", code="bad_json")
    param = _param(location)
    if kind in {"unsupported", "missing_field"}:
        # A validator of the whole object does not know which field it stumbled over.
        param = f"{param}.{error['ctx']['name']}" if param else error["ctx"]["name"]
        code = "unsupported_parameter" if kind == "unsupported" else "missing_required_parameter"
        return ApiError(f"{param}: {error['msg']}", param=param, code=code)
    if not param:
        return ApiError("the body must be a JSON object, sent as Content-Type: application/json")
    if kind == "extra_forbidden":
        known = request.known_fields()
        message = str(unknown("field", param, known)) if param == location[0] else f"unknown field {param!r}"
        return ApiError(message, param=param, code="unknown_parameter")
    if kind == "missing":
        return ApiError(f"{param} is missing", param=param, code="missing_required_parameter")
    given = error["input"]
    got = f", got {given!r}" if isinstance(given, str | int | float) and len(repr(given)) <= 60 else ""
    message = error["msg"][:1].lower() + error["msg"][1:]
    return ApiError(f"{param}: {message}{got}", param=param, code="invalid_value")


def _param(location: list[str | int]) -> str:
    """`messages[0].content` from pydantic's location, without the tags of unions."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith("<"):
            path += f".{step}" if path else step
    return path
