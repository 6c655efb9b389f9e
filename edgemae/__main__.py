"""`python -m edgemae`: the command line where the `edgemae` script is not on the path."""

from edgemae.cli import main

if __name__ == "__main__":
    main()
