"""Lightning callbacks that grow, restore, record and save."""
