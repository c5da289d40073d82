"""The text room: which documents are kept, and what of them. Nothing here knows where a document came from."""
