"""How the program meets the machine: device, memory, signals, errors and exit codes."""
