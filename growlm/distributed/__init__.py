"""Launch processes, set up their process group, and compute on sharded tensors."""
