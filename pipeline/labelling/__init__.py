"""From an augmented group to a committed part."""
