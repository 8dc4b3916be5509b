"""`python -m benchmarks`: the same as `hybridgen bench`."""

import sys

from hybridgen.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
