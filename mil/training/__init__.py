"""Bags and folds -> trained models, all of an experiment together."""
