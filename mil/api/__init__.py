"""The parts of `import mil` that are more than an existing function: arrays in, arrays out, no workflow needed."""
