"""From tiles to batches: sources, patch store, plan, stream, augmentation."""
