"""`python -m growlm COMMAND ...`, as the console script `growlm`."""

from growlm.cli.main import console_main

if __name__ == "__main__":
    console_main()
