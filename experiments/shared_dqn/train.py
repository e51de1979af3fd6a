"""`python -m experiments.shared_dqn.train`."""

import sys

from experiments.methods import METHODS

main = METHODS["shared_dqn"].train

if __name__ == "__main__":
    sys.exit(main())
