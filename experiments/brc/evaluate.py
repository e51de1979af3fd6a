"""`python -m experiments.brc.evaluate`."""

import sys

from experiments.methods import METHODS

main = METHODS["brc"].evaluate

if __name__ == "__main__":
    sys.exit(main())
