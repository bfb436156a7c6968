"""``python -m uotft``."""

from uotft.cli.app import main

main()
