"""`python -m experiments.gradnorm.train`."""

import sys

from experiments.methods import METHODS

main = METHODS["gradnorm"].train

if __name__ == "__main__":
    sys.exit(main())
