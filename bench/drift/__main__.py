"""`python -m bench.drift`: see `command`."""

import sys

from bench.drift.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
