"""The one training loop: batches, schedule, checkpoints, many processes, and the watch for divergence."""
