"""Labelled images as training crops."""
