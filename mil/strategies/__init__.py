"""Strategies: how the models of several sites become the same model, or stay apart. Pure functions over named tensors."""
