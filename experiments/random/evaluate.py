"""`python -m experiments.random.evaluate`."""

import sys

from experiments.methods import METHODS

main = METHODS["random"].evaluate

if __name__ == "__main__":
    sys.exit(main())
