"""Settings of earlier versions: recipes and the command line refuse them with the new name, or with what is there now.

This is the one place of them: an old name needs a line in a table here and nothing else.
"""

ANY = "*"
"""Whichever stage or command."""

RENAMED = {
    ("vision", "preset"): ("model", "preset"),
    ("vision", "likeness"): ("model", "qk_init_correlation"),
    ("model", "likeness"): ("model", "qk_init_correlation"),
    ("vision", "sharpness"): ("vision", "logit_scale"),
    (ANY, "guard"): (ANY, "loss_spikes"),
    **{
        (command, old): (command, new)
        for command in ("chat", "generate", "serve")
        for old, new in (("guess", "num_speculative_tokens"), ("draft", "draft_model"), ("slots", "max_num_seqs"))
    },
}
"""(stage or command, setting) → the same of today. A setting inside a table is written with dots; the name of a table
covers all that is in it."""

REMOVED = {("evaluate", "reasons"): "the report judges nothing: `herd bench tiny RUN` lists a run's targets"}
"""(stage or command, setting) → why it is gone, and what to use."""


def why_removed(place: str, setting: str) -> str | None:
    """Why `setting` of `place` is gone, and what to use; None if it never was a setting."""
    return REMOVED.get((place, setting))


def new_name(place: str, setting: str) -> tuple[str, str] | None:
    """The stage or command and the name that `setting` of `place` has now; None if it was never renamed."""
    parts = setting.split(".")
    for end in range(len(parts), 0, -1):
        for where in (place, ANY):
            if found := RENAMED.get((where, ".".join(parts[:end]))):
                there, name = found
                return (place if there == ANY else there), ".".join([name, *parts[end:]])
    return None
