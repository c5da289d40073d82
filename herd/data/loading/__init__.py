"""The loading room: a data folder's tables, mixture, packing, batches. Batch s is a function of (folder, config, s)."""
