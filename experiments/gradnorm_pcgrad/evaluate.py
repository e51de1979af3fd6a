"""`python -m experiments.gradnorm_pcgrad.evaluate`."""

import sys

from experiments.methods import METHODS

main = METHODS["gradnorm_pcgrad"].evaluate

if __name__ == "__main__":
    sys.exit(main())
