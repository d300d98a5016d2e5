"""Strategies over named tensors, their drivers in process, and the hospitals' transport."""
