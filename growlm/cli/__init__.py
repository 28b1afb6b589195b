"""What the commands share: a Hydra config from the command line, errors as messages and exit codes."""
