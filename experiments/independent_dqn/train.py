"""`python -m experiments.independent_dqn.train`."""

import sys

from experiments.methods import METHODS

main = METHODS["independent_dqn"].train

if __name__ == "__main__":
    sys.exit(main())
