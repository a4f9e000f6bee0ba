"""Lower precision, written into the graph: calibration, Q/DQ, FP16 types, and what they cost."""
