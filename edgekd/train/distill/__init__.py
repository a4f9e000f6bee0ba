"""Distillation: masking, adapters, reconstruction, schedule and the loop that joins them."""
