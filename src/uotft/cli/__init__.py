"""The command line: each module parses one group of commands, calls, and prints."""
