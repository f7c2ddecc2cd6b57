"""The commands: flags, exit status, progress and logging are here alone."""
