"""Searching better values for a recipe's distillation, by its validation part alone."""
