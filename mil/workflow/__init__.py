"""What the Snakefile needs to know before a job starts. Imports no torch, matplotlib or lifelines: every cluster job reads the Snakefile."""
