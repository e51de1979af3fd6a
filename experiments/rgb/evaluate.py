"""`python -m experiments.rgb.evaluate`."""

import sys

from experiments.methods import METHODS

main = METHODS["rgb"].evaluate

if __name__ == "__main__":
    sys.exit(main())
