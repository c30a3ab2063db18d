"""`python -m allaprima`."""

from allaprima.cli import main

if __name__ == "__main__":
    main()
