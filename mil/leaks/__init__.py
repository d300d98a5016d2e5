"""Leak checks: how a label, or a patient that is to be scored, could have reached training."""
