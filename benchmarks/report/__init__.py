"""``ddgan-fast report``: measurements and runs as one HTML file that needs nothing beside it."""
