//! For tests only: in-process server, faulty disk, checkers
