"""What is unsafe, who finds it, and how well: guards of messages, of prompts and of code, red team, balance."""
