"""What both sides of a federation need: error codes, private files, one process a folder, supervised programs.
Nothing here knows of devices or of the operator."""
