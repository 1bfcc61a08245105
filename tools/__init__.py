"""What `make` calls: building the book, running chapters, screenshots, benchmarks."""
