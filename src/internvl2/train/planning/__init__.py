"""What a recipe will need before it runs: memory, speed, and which strategy to take."""
