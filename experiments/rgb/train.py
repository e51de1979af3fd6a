"""`python -m experiments.rgb.train`."""

import sys

from experiments.methods import METHODS

main = METHODS["rgb"].train

if __name__ == "__main__":
    sys.exit(main())
