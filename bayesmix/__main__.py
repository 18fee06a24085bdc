"""`python -m bayesmix` is the command `bayesmix`."""

from bayesmix.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
