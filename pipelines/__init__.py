"""The program: stages that read a config, call `wsi`, and write a run folder."""
