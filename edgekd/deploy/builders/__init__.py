"""From ONNX to what a backend loads, for backends with a compiled form: one file each."""
