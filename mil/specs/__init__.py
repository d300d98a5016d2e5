"""Specs of endpoints, models, strategies and training, put together into experiments."""
