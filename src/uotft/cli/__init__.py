"""The command line: each module parses one group of commands, calls a package and prints."""
