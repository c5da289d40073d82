"""The media room: pictures and film are decoded, cut into tiles and augmented here. Nothing here knows a token."""
