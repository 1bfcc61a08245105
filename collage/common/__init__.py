"""What several papers share; it knows none of them."""
