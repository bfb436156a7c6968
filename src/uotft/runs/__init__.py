"""One training or search as processes: start them, follow them, stop them."""
