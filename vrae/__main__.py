"""`python -m vrae` is `vrae`."""

from vrae.apps.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
