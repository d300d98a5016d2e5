"""Frozen encoders: a name -> tile in, vector out. `encoders.toml` has an entry per encoder, `build.build` makes it."""
