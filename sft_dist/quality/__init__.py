"""Looks at data before it costs GPUs: each module looks for one kind of fault and returns findings. `sft_dist.check` runs them."""
