"""Fine-tuning and training from nothing: recipes, data, packing, loss, optimizer, checkpoints."""
