"""The package room: the embedded sets, and what only our own recipes ask of them."""
