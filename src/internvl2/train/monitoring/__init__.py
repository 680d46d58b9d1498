"""How a run is watched: speed, arithmetic, lines and records, curves and trackers."""
