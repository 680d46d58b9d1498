"""From words and pictures to numbers."""
