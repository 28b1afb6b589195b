"""Handle the machine growlm runs on: device, memory, signals, errors and exit codes."""
