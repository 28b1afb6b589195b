"""Show banners, tables and progress bars on the console."""
