"""Read and write files safely: atomic writes, checked reads, locks, checksums."""
