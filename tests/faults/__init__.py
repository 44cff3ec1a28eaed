"""What people read, and what is left on disk, when something breaks."""
