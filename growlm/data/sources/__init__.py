"""Sources of documents: files, Hugging Face datasets, and the embedded stories."""
