"""Which parameters a training changes: those that the config's `trainable` names, by patterns with `*` and `?`."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from herd.errors import HerdError
from herd.model.transformer import Transformer


def set_trainable(model: Transformer, patterns: Sequence[str]) -> None:
    """Have exactly the parameters whose names match one of `patterns` carry gradients. Raises HerdError for a pattern
    that matches none."""
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            parts = ", ".join(dict.fromkeys(f"{name.split('.')[0]}.*" for name in names))
            raise HerdError(
                f"trainable={pattern!r} matches no parameter: patterns such as layers.*.attention.*, or one of {parts}"
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))
    if not patterns:
        raise HerdError("trainable is empty: name the parameters to train, such as layers.*")
