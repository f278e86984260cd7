"""The suite itself: what it catches."""
