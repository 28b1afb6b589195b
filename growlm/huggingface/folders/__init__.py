"""Write whole model folders of either kind: converted ones and grown ones."""
