"""`python -m experiments.aim.train`."""

import sys

from experiments.methods import METHODS

main = METHODS["aim"].train

if __name__ == "__main__":
    sys.exit(main())
