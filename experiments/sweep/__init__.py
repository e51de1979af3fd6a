"""Many runs side by side, on this machine or on a cluster: methods, variants and seeds, through Ray."""
