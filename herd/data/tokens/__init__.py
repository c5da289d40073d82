"""The token room: tokenizers, chat formats, tool calls. Text and pictures become ids here."""
