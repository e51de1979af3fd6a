"""`python -m experiments.pcgrad.evaluate`."""

import sys

from experiments.methods import METHODS

main = METHODS["pcgrad"].evaluate

if __name__ == "__main__":
    sys.exit(main())
