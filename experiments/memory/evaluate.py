"""`python -m experiments.memory.evaluate`."""

import sys

from experiments.methods import METHODS

main = METHODS["memory"].evaluate

if __name__ == "__main__":
    sys.exit(main())
