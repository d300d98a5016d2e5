"""Where the results of a cohort lie, and how they are read."""
