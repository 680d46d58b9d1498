"""`python -m internvl2` is the same as `internvl2`."""

import sys

from internvl2.cli import main

if __name__ == "__main__":
    sys.exit(main())
