"""Speed against peers, each benchmark in one interleaved run."""
