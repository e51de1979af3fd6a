"""`python -m experiments.shared_dqn.evaluate`."""

import sys

from experiments.methods import METHODS

main = METHODS["shared_dqn"].evaluate

if __name__ == "__main__":
    sys.exit(main())
