"""The commands of `wsi`: typed functions whose docstrings are the help, by group."""
