"""`python -m experiments.normalised.evaluate`."""

import sys

from experiments.methods import METHODS

main = METHODS["normalised"].evaluate

if __name__ == "__main__":
    sys.exit(main())
