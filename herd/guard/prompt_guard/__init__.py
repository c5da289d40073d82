"""The prompt guard: a small classifier of injections and jailbreaks that reads characters, trained and checked here."""
