"""fusebook's library: thin modules that the notebooks drive. No experiment lives here."""
