"""``python -m uotft``."""

from uotft.cli import main

main()
