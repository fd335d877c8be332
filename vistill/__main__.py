"""`python -m vistill`."""

from vistill.cli.main import entry

if __name__ == "__main__":
    entry()
