"""What every package may use: settings, records, files, locks, errors. Imports none of them."""
