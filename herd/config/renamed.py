"""Settings of earlier versions and where they are now: recipes and the command line name the new one for an old one.

This is the one table of them: an old name needs a line here and nothing else.
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
stands for all that is in it."""


def new_name(place: str, setting: str) -> tuple[str, str] | None:
    """The stage or command and the name that `setting` of `place` has now; None if it was never renamed."""
    parts = setting.split(".")
    for end in range(len(parts), 0, -1):
        for where in (place, ANY):
            if found := RENAMED.get((where, ".".join(parts[:end]))):
                there, name = found
                return (place if there == ANY else there), ".".join([name, *parts[end:]])
    return None
