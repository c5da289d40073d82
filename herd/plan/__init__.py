"""`herd plan`: estimates of parameters, memory and training cost, from the config alone and without torch."""
