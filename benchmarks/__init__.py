"""Ours and other people's code on the same work, in one run: python -m benchmarks.<paper>"""
