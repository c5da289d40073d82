"""`herd bench NAME`: every claim against a named peer, measured in that run."""
