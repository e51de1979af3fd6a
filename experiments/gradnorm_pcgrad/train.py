"""`python -m experiments.gradnorm_pcgrad.train`."""

import sys

from experiments.methods import METHODS

main = METHODS["gradnorm_pcgrad"].train

if __name__ == "__main__":
    sys.exit(main())
