"""Process groups, launching, and tensors sharded over processes."""
