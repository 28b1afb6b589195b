"""`python -m growlm COMMAND ...`, as the console script `growlm`."""

from growlm.cli.main import program

if __name__ == "__main__":
    program()
