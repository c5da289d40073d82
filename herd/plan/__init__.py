"""`herd plan`: what a shape costs, reckoned from its config alone and without torch: to keep, to serve, to train."""
