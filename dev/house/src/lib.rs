//! Tests that hold the house in order; everything of interest is under `tests/`.
