"""Many queries at once: Wolfe's method in lock-step, and the points it asks for."""
