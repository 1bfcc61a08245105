"""What makes episodes fast; held equal to `play` by tests."""
