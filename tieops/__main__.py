"""Run the command ``tieops`` as ``python -m tieops``."""

from tieops.cli import main

if __name__ == "__main__":
    main()
