"""What a person sees on the console: banners, tables, progress bars."""
