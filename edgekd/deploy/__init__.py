"""The build host's side: checkpoint to ONNX to bundle, compared numerically at every hand-over."""
