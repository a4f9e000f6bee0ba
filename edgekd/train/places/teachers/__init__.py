"""Teachers that see one kind of evidence: a file each, or an encoder of pictures."""
