"""Entry points that run the label job, with Ray or without."""
