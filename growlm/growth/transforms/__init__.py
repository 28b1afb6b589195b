"""The steps that turn an old tensor into a new one: copy, split, fill, scale, add noise."""
