"""The view room: what a data folder holds, for a reader's eyes."""
