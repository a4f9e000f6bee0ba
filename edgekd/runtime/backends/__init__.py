"""What runs a batch of tiles: one file per backend; the file name is the backend's name."""
