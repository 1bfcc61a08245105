"""A whole outer step as one program."""
