"""`python -m experiments.gradnorm.evaluate`."""

import sys

from experiments.methods import METHODS

main = METHODS["gradnorm"].evaluate

if __name__ == "__main__":
    sys.exit(main())
