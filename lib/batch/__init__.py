"""Notebooks without a browser: papermill with checked parameters, and grids of runs on Snakemake."""
