"""Evaluating students, alone and beside their teachers."""
