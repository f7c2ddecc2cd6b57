"""Views: drawn from seeds, applied to pixels, paired and mixed."""
