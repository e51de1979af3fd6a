"""`python -m experiments.random.train`."""

import sys

from experiments.methods import METHODS

main = METHODS["random"].train

if __name__ == "__main__":
    sys.exit(main())
