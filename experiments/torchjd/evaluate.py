"""`python -m experiments.torchjd.evaluate`."""

import sys

from experiments.methods import METHODS

main = METHODS["torchjd"].evaluate

if __name__ == "__main__":
    sys.exit(main())
