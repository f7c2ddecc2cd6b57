"""What the project is for, in programs that one can run."""
