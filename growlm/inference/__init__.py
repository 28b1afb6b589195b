"""Using a trained model: text from prompts, and losses of texts. No Lightning."""
