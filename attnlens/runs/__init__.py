"""Questions in, results out: each question of a file is run once and its results are kept."""
