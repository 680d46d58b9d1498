"""How fast a model answers on a device, and what the device would allow."""
