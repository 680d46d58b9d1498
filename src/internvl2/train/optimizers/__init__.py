"""Optimizers and their parts: groups of weights, exact weights, 8-bit moments, the schedule."""
