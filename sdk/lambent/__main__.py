"""`python -m lambent`: the CLI, where its script is not on PATH."""

from lambent.cli.main import main

if __name__ == "__main__":
    main()
