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
    ("model", "temperature"): ("model", "temperature_tuning"),
    ("pretrain", "schedule"): ("pretrain", "picture_schedule"),
    **{(stage, "guard"): (stage, "loss_spikes") for stage in ("vision", "pretrain", "midtrain", "sft")},
    (ANY, "balance_rate"): (ANY, "bias_update_rate"),
    (ANY, "optimizer.warmup"): (ANY, "optimizer.warmup_ratio"),
    **{
        (command, old): (command, new)
        for command in ("chat", "generate", "serve")
        for old, new in (("guess", "num_speculative_tokens"), ("draft", "draft_model"), ("slots", "max_num_seqs"))
    },
}
"""(stage or command, old setting) → its name now. A setting inside a table is written with dots; the name of a table
covers all that is in it. Stored configs are read by the same lines (`old_names`)."""

REMOVED = {("evaluate", "reasons"): "the report judges nothing: `herd bench tiny RUN` lists a run's targets"}
"""(stage or command, setting) → why it is gone, and what to use."""


def why_removed(place: str, setting: str) -> str | None:
    """Why `setting` of `place` is gone, and what to use; None if it never was a setting."""
    return REMOVED.get((place, setting))


def old_names(setting: str) -> list[str]:
    """The names that a setting had in the same table, as configs of earlier versions are stored with them."""
    table, _, name = setting.rpartition(".")
    renamed = dict.fromkeys(old for (place, old), new in RENAMED.items() if new == (place, setting))
    return [old.rpartition(".")[2] for old in renamed if old.rpartition(".")[0] == table and old != name]


def new_name(place: str, setting: str) -> tuple[str, str] | None:
    """The stage or command and the name that `setting` of `place` has now; None if it was never renamed."""
    parts = setting.split(".")
    for end in range(len(parts), 0, -1):
        for where in (place, ANY):
            if found := RENAMED.get((where, ".".join(parts[:end]))):
                there, name = found
                return (place if there == ANY else there), ".".join([name, *parts[end:]])
    return None
