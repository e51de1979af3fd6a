"""Finished runs, from the files on disk to tables, figures and reports."""
