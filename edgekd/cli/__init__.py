"""The command ``edgekd``: one file per command; the file name is the command's name."""
