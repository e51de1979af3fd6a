"""Searches the settings of methods, with equally many trials for each."""
