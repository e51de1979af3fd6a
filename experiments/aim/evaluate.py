"""`python -m experiments.aim.evaluate`."""

import sys

from experiments.methods import METHODS

main = METHODS["aim"].evaluate

if __name__ == "__main__":
    sys.exit(main())
