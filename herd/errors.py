"""The one error that a user is meant to read: what went wrong, with the value, and how to fix it."""

import difflib
from collections.abc import Iterable


class HerdError(ValueError):
    """A mistake in the input or the environment, in one line. The command line prints it without a traceback."""

    exit_code = 1


class Stopped(HerdError):
    """Asked to stop by SIGTERM, with all saved. The exit code is EX_TEMPFAIL of sysexits.h: re-run to resume."""

    exit_code = 75


class Interrupted(Stopped):
    """Asked to stop by Ctrl-C, with all saved."""

    exit_code = 130


class Misunderstood(HerdError):
    """A command line that names no command."""

    exit_code = 2


def unknown(kind: str, value: str, known: Iterable[str]) -> HerdError:
    """The error for a misspelt name: `unknown stage 'pretrian', did you mean 'pretrain'?`"""
    known = sorted(known)
    near = difflib.get_close_matches(value, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return HerdError(f"unknown {kind} {value!r}, {hint}")
