//! What the standard library lacks: task tree, back-off, clock, byte sizes, seeded random
