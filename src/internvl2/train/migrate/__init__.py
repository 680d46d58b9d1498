"""Recipes out of what other trainers are started with: shell scripts, command lines, YAML."""
