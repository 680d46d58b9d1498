"""Many conversations at once."""
