"""`python -m experiments.memory.train`."""

import sys

from experiments.methods import METHODS

main = METHODS["memory"].train

if __name__ == "__main__":
    sys.exit(main())
