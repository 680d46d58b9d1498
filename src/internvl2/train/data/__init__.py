"""From files of any form to packs on the device: sources, order, packing, worker processes."""
