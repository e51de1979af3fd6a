"""`python -m experiments.pcgrad.train`."""

import sys

from experiments.methods import METHODS

main = METHODS["pcgrad"].train

if __name__ == "__main__":
    sys.exit(main())
