"""The InternVL2 family of vision-language models, complete, readable and fast.

The names below are loaded when they are first used, so that importing the package costs nothing.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from internvl2.checkpoint.store import load, save
    from internvl2.engine.chat import Chat
    from internvl2.engine.engine import Engine, EngineOptions
    from internvl2.engine.sequence import Answer, Output, SamplingParams
    from internvl2.processing.conversation import Conversation, Message, Picture, Text, Video
    from internvl2.processing.processor import EncodeOptions
    from internvl2.processing.readers import from_openai, from_opengvlab

_HOMES = {
    "checkpoint.store": ("load", "save"),
    "engine.chat": ("Chat",),
    "engine.engine": ("Engine", "EngineOptions"),
    "engine.sequence": ("Answer", "Output", "SamplingParams"),
    "processing.conversation": ("Conversation", "Message", "Picture", "Text", "Video"),
    "processing.processor": ("EncodeOptions",),
    "processing.readers": ("from_openai", "from_opengvlab"),
}

__all__ = [
    "Answer",
    "Chat",
    "Conversation",
    "EncodeOptions",
    "Engine",
    "EngineOptions",
    "Message",
    "Output",
    "Picture",
    "SamplingParams",
    "Text",
    "Video",
    "from_openai",
    "from_opengvlab",
    "load",
    "save",
]


def __getattr__(name: str) -> object:
    """The public name, from the module that defines it."""
    import importlib

    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
