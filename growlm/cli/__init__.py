"""Provide what all commands share: parsing of Hydra arguments, shell completion, exit codes."""
