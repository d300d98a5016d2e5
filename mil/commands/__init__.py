"""Groups of commands that `mil.cli` puts together; each opens, calls and writes, with heavy imports inside."""
