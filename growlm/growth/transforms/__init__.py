"""What an operator does to a single tensor: copy, split, fill, scale, add noise."""
