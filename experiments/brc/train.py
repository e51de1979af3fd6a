"""`python -m experiments.brc.train`."""

import sys

from experiments.methods import METHODS

main = METHODS["brc"].train

if __name__ == "__main__":
    sys.exit(main())
