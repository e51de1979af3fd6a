"""`python -m experiments.static.evaluate`."""

import sys

from experiments.methods import METHODS

main = METHODS["static"].evaluate

if __name__ == "__main__":
    sys.exit(main())
