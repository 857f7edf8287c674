"""jnet under other people's names."""
