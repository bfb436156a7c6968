"""One module per DVC stage or command: read files, call a package, write files."""
