"""Entry point of `python -m attnwatch`."""

import sys

from attnwatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
