"""Lightning callbacks that grow the model, record progress, and save and restore state."""
