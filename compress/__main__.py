"""`python -m compress` and the `compress` command."""

from compress.cli import main

if __name__ == "__main__":
    main()
