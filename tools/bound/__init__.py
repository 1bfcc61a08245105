"""The built book bound as files that are read without the site: EPUB and PDF."""
