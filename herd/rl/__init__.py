"""Online reinforcement learning: what is drawn, kept, picked and trained. docs/rl.md describes the life of a group."""
