"""What tiacc does to a graph before a backend sees it: passes, and what runs them."""
