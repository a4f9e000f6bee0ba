"""Checkpoint to ONNX. The only part of deploy that imports torch."""
