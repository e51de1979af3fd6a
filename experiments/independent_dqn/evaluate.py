"""`python -m experiments.independent_dqn.evaluate`."""

import sys

from experiments.methods import METHODS

main = METHODS["independent_dqn"].evaluate

if __name__ == "__main__":
    sys.exit(main())
