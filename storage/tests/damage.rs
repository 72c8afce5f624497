//! What happens to a store whose bytes were changed behind its back, or whose disk fails.
