"""`python -m experiments.static.train`."""

import sys

from experiments.methods import METHODS

main = METHODS["static"].train

if __name__ == "__main__":
    sys.exit(main())
