"""Runs and bags -> predictions per patient, and attention per tile."""
