"""`python -m experiments.torchjd.train`."""

import sys

from experiments.methods import METHODS

main = METHODS["torchjd"].train

if __name__ == "__main__":
    sys.exit(main())
