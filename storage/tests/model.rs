//! Random operations against a model in memory, with reopening.
