"""Predictions -> figures of merit with intervals, paired comparisons, baselines and leak checks."""
