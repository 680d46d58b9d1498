"""Pictures drawn from a seed, with questions about them and the right answers."""
