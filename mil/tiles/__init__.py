"""A slide -> its tiles: corners of the squares of `size_px` at `mpp` that hold tissue, row by row, and what is wrong with each."""
