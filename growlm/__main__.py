"""Run `python -m growlm COMMAND ...`, the same as the console script `growlm`."""

from growlm.cli.main import console_main

if __name__ == "__main__":
    console_main()
