"""Power sensors: one file each; the file name is the name. See ``_base`` for what it holds."""
