"""The InternVL2 family of vision-language models, complete, readable and fast."""

__version__ = "0.1.0"
