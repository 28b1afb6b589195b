"""Read and write files safely: atomic writes, checked reads, file locks, checksums."""
