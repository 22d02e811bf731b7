"""Runs that end in a folder of pictures, traces and summaries."""
