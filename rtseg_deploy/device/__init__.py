"""What runs on a device: one file that needs nothing else of this package."""
