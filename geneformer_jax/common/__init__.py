"""What all packages use: errors, files written whole or not at all, provenance, flags, logging."""
