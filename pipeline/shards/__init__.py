"""WebDataset shards: indexed, and packed."""
