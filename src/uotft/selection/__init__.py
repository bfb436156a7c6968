"""Class means of source and target -> the source classes to reuse."""
