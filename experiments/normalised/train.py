"""`python -m experiments.normalised.train`."""

import sys

from experiments.methods import METHODS

main = METHODS["normalised"].train

if __name__ == "__main__":
    sys.exit(main())
