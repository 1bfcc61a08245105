"""Full-scale runs, one program a paper: python -m experiments.<paper>, or under torchrun."""
