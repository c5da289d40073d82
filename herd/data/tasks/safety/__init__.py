"""What is unsafe to ask or to say, in generated items: for guards, refusals, rewards and their tests."""
