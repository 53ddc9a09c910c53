"""`python -m vrae` is `vrae`."""

from vrae.apps.cli import console

if __name__ == "__main__":
    console()
