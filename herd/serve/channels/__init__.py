"""WhatsApp, Messenger and Instagram in front of a model: webhooks in, answers out, each message answered once.

webhooks (signature, handshake) -> events -> inbox (SQLite, before the 200) -> delivery -> answer -> Graph API
"""
