"""Recipes out of what other trainers are started with: shell scripts, command lines, YAML.

In the order of reading: `migration` makes a recipe of a text, and `writing` tells it. `sources`
finds out what a text is. For scripts, `shell` takes them apart into words, `expansion` replaces
variables, and `command` finds the one that trains. What they find are `flags`, for which rules give
`verdicts`.

The rules of each trainer are in `official`, `paddlemix`, `llama_factory` (its data in `llama_data`)
and `swift`; what several have in common is in `trainer_flags`, `launching`, `batch`, `adapters` and
`inputs`.
"""
