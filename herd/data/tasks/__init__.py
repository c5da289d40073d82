"""The task room: prompts with graders, which serve training data, reward and evaluation."""
