"""What each study trains, measures and claims: one module per study, whose function `study` returns the report."""
