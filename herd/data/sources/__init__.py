"""The source room: what can be read, and how it comes into the cache."""
