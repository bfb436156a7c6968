"""Selection: class means of source and target -> the source classes to reuse."""
