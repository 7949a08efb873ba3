"""``python -m tieops`` is the command ``tieops``."""

from tieops.cli import main

if __name__ == "__main__":
    main()
